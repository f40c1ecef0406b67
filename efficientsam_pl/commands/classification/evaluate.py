"""`efficientsam evaluate` of a classifier: top-1 and top-5 accuracy on labelled shards."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from efficientsam_pl.commands.classification.result import Scored, class_table, merged, settings_of
from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.commands.evaluate.dataset import name_of
from efficientsam_pl.commands.evaluate.image_records import (
    ImageScoring,
    refuse_prompt_keys,
    score_images,
)
from efficientsam_pl.commands.evaluate.ranks import autocast, device_of
from efficientsam_pl.commands.evaluate.result import RunNotes
from efficientsam_pl.config.load import ConfigError, as_dict
from efficientsam_pl.data.class_list import packed_class_names
from efficientsam_pl.data.datasets.labelled_images import LabelledImage, LabelledImages
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.results.class_record import TOP, ClassRecord, class_record
from efficientsam_pl.evaluation.results.journal import Finished
from efficientsam_pl.evaluation.results.result_file import Result
from efficientsam_pl.inference.classifier import load_classifier, probabilities, scoring_view
from efficientsam_pl.inference.hub import weights_sha256
from efficientsam_pl.models.classifier import Classifier
from efficientsam_pl.models.classifier_config import ClassifierConfig
from efficientsam_pl.records import CorruptSample

_BATCH = 32  # images; part of what the logits' last digits depend on


def run(config: EvaluateConfig) -> None:
    """Evaluate the classifier that the config names.

    Raises:
        UserError: Keys that have no effect here, a file that cannot be used, or no image to score.
        SavedAndStopped: On a request to stop; the same command continues.
    """
    if config.kind != "shards":
        raise ConfigError(f"kind={config.kind}: a classifier is scored on shards")
    refuse_prompt_keys(config, "a classifier", ("crowds", "exif_orientation"))
    score_images(config, partial(ClassScoring, config))


class ClassScoring(ImageScoring[LabelledImage, ClassRecord]):
    """A classifier and the labelled images that it is scored on."""

    def __init__(self, config: EvaluateConfig) -> None:
        weights = config.model.weights
        assert weights is not None, "it is among the config's needs"
        self._config = config
        self._model = load_classifier(weights).to(device_of(config))
        self._scored = _open(config, self._model, weights)
        self.numbers, self.photos, self.batch = self._scored.numbers, self._scored.images, _BATCH

    def settings(self) -> dict[str, Any]:
        """See ImageScoring."""
        return settings_of(self._scored)

    def parse(self, line: str) -> ClassRecord:
        """See ImageScoring."""
        return class_record(line)

    def read(self, number: int) -> LabelledImage | CorruptSample:
        """See ImageScoring."""
        return self._scored.images.read(number)

    @torch.no_grad()
    def score(
        self, numbers: Sequence[int], read: Sequence[LabelledImage | CorruptSample]
    ) -> Iterator[ClassRecord]:
        """Classify a batch; a corrupt image is black in it, so that the others' logits stay."""
        side, device = self._model.config.vit.image_size, self._model.head.weight.device
        black = torch.zeros(3, side, side, dtype=torch.uint8)
        image = torch.stack([r.image if isinstance(r, LabelledImage) else black for r in read])
        with autocast(self._config):
            shares = probabilities(self._model, image.to(device))
        top = shares.topk(min(max(TOP), shares.shape[1])).indices.tolist()
        for number, sample, classes in zip(numbers, read, top, strict=True):
            if isinstance(sample, CorruptSample):
                yield ClassRecord(number, damage=(sample.kind, name_of(sample), sample.detail))
            else:
                yield ClassRecord(number, sample.label, tuple(classes), sha256=sample.sha256)

    def result(self, finished: Finished[ClassRecord], notes: RunNotes) -> Result:
        """See ImageScoring."""
        return merged(self._scored, finished, notes, self._config)

    def table(self, result: Result) -> Table:
        """See ImageScoring."""
        return class_table(result)

    def summary(self, result: Result) -> str:
        """See ImageScoring."""
        numbers = result.numbers["classification"]["accuracy"]
        return f"top-1 {numbers['top1']:.4f}, top-5 {numbers['top5']:.4f}"

    def nothing(self) -> str:
        """See ImageScoring."""
        return (
            f"nothing to score in {self._config.shards}: no image has a class that the model knows"
        )


def _open(config: EvaluateConfig, model: Classifier, weights: str) -> Scored:
    """Open the set and compare its classes with the model's."""
    shards, described = open_shards(config.shards), model.config
    _check_classes(packed_class_names(shards, "shards"), described, config.shards, weights)
    about = {
        "name": Path(weights).stem,
        "weights_sha256": weights_sha256(weights),
        "resize": f"centre {described.vit.image_size} of {described.resize_side()}",
        "precision": config.precision,
        "config": as_dict(described),
    }
    images = LabelledImages(shards, scoring_view(described), described.classes)
    numbers = tuple(range(len(shards)))[: config.photos]
    return Scored(shards, images, numbers, described, about)


def _check_classes(
    names: tuple[str, ...], model: ClassifierConfig, shards: str, weights: str
) -> None:
    if names and model.labels and names != model.labels:
        unknown = [name for name in names if name not in model.labels]
        example = f", such as {unknown[0]}" if unknown else ", in another order"
        raise UserError(
            f"shards: the {len(names)} classes of {shards} are not the {len(model.labels)} of "
            f"{weights}{example}; pack the set from folders with the same names"
        )
