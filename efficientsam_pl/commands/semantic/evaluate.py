"""`efficientsam evaluate` of a semantic segmenter: mean IoU on shards with label maps."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.commands.evaluate.dataset import name_of
from efficientsam_pl.commands.evaluate.image_records import (
    ImageScoring,
    refuse_prompt_keys,
    score_images,
)
from efficientsam_pl.commands.evaluate.ranks import autocast, device_of
from efficientsam_pl.commands.evaluate.result import RunNotes
from efficientsam_pl.commands.semantic.result import (
    Scored,
    class_table,
    merged,
    settings_of,
)
from efficientsam_pl.config.load import ConfigError, as_dict
from efficientsam_pl.data.class_list import packed_class_names
from efficientsam_pl.data.datasets.semantic_images import SemanticImage, SemanticImages
from efficientsam_pl.data.shards import ShardSet, open_shards
from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.metrics.semantic_iou import confusion
from efficientsam_pl.evaluation.results.journal import Finished
from efficientsam_pl.evaluation.results.published import SEMANTIC
from efficientsam_pl.evaluation.results.result_file import Result
from efficientsam_pl.evaluation.results.semantic_record import SemanticRecord, semantic_record
from efficientsam_pl.inference.hub import weights_sha256
from efficientsam_pl.inference.semantic import load_semantic, resize_rule, segment_image
from efficientsam_pl.models.semantic.config import SemanticConfig
from efficientsam_pl.records import CorruptSample


def run(config: EvaluateConfig) -> None:
    """Evaluate the semantic segmenter that the config names.

    Raises:
        UserError: Keys that have no effect here, a file that cannot be used, or no image to score.
        SavedAndStopped: On a request to stop; the same command continues.
    """
    if config.kind != "shards":
        raise ConfigError(f"kind={config.kind}: a semantic segmenter is scored on shards")
    refuse_prompt_keys(config, "a semantic segmenter", ("crowds", "exif_orientation"))
    score_images(config, partial(SemanticScoring, config))


class SemanticScoring(ImageScoring[SemanticImage, SemanticRecord]):
    """A semantic segmenter and the images that it is scored on, one at a time."""

    batch = 1  # images have sizes of their own

    def __init__(self, config: EvaluateConfig) -> None:
        weights = config.model.weights
        assert weights is not None, "it is among the config's needs"
        self._config = config
        self._model = load_semantic(weights).to(device_of(config))
        self._scored = _open(config, self._model.config, weights)
        self.numbers, self.photos = self._scored.numbers, self._scored.images

    def settings(self) -> dict[str, Any]:
        """See ImageScoring."""
        return settings_of(self._scored)

    def parse(self, line: str) -> SemanticRecord:
        """See ImageScoring."""
        return semantic_record(line)

    def read(self, number: int) -> SemanticImage | CorruptSample:
        """See ImageScoring."""
        return self._scored.images.read(number)

    def score(
        self, numbers: Sequence[int], read: Sequence[SemanticImage | CorruptSample]
    ) -> Iterator[SemanticRecord]:
        """Segment images one by one, and count pixels by their true and predicted class."""
        for number, sample in zip(numbers, read, strict=True):
            if isinstance(sample, CorruptSample):
                damage = (sample.kind, name_of(sample), sample.detail)
                yield SemanticRecord(number, damage=damage)
                continue
            with autocast(self._config):
                predicted = segment_image(self._model, sample.image).labels
            truth = torch.from_numpy(sample.labels).to(predicted.device)
            matrix = confusion(predicted, truth, self._scored.model.classes)
            yield SemanticRecord.of(number, matrix, sample.sha256)

    def result(self, finished: Finished[SemanticRecord], notes: RunNotes) -> Result:
        """See ImageScoring."""
        return merged(self._scored, finished, notes, self._config)

    def table(self, result: Result) -> Table:
        """See ImageScoring."""
        return class_table(result)

    def summary(self, result: Result) -> str:
        """See ImageScoring."""
        value = result.numbers[SEMANTIC]["miou"]["all"]
        return "no pixel has a class" if value is None else f"mIoU {value:.4f}"

    def nothing(self) -> str:
        """See ImageScoring."""
        return (
            f"nothing to score in {self._config.shards}: no image has a label map of the model's "
            "classes"
        )


def _open(config: EvaluateConfig, model: SemanticConfig, weights: str) -> Scored:
    """Open the set and compare its classes with the model's."""
    shards = open_shards(config.shards)
    _check_classes(shards, model, config.shards, weights)
    about = {
        "name": Path(weights).stem,
        "weights_sha256": weights_sha256(weights),
        "resize": resize_rule(model),
        "precision": config.precision,
        "config": as_dict(model),
    }
    numbers = tuple(range(len(shards)))[: config.photos]
    return Scored(shards, SemanticImages(shards, model.classes), numbers, model, about)


def _check_classes(shards: ShardSet, model: SemanticConfig, pattern: str, weights: str) -> None:
    names = packed_class_names(shards, "shards")
    if not names or not model.labels or names == model.labels:
        return
    unknown = [name for name in names if name not in model.labels]
    example = f", such as {unknown[0]}" if unknown else ""
    how = example or (", in another order" if len(names) == len(model.labels) else "")
    raise UserError(
        f"shards: the {len(names)} classes of {pattern} are not the {len(model.labels)} of "
        f"{weights}{how}; pack the set with the same class list"
    )
