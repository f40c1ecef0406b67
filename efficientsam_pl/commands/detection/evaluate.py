"""`efficientsam evaluate` of a detector: box and mask AP with categories, as COCO computes them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from efficientsam_pl.commands.detection.result import (
    Scored,
    detection_table,
    merged,
    settings_of,
    summary,
)
from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.commands.evaluate.dataset import EvaluationSet, name_of, open_set
from efficientsam_pl.commands.evaluate.image_records import (
    ImageScoring,
    refuse_prompt_keys,
    score_images,
)
from efficientsam_pl.commands.evaluate.ranks import autocast, device_of
from efficientsam_pl.commands.evaluate.result import RunNotes
from efficientsam_pl.config.load import ConfigError, as_dict
from efficientsam_pl.data.categories import describe_difference, packed_categories
from efficientsam_pl.data.coco.categories import Category
from efficientsam_pl.data.datasets.detection import class_numbers, classified_image
from efficientsam_pl.data.datasets.image_sources import LoadedImage, PackedImages
from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.metrics.detection_ap import compared
from efficientsam_pl.evaluation.results.detection_record import DetectionRecord, detection_record
from efficientsam_pl.evaluation.results.journal import Finished
from efficientsam_pl.evaluation.results.result_file import Result
from efficientsam_pl.inference.detections import detected_objects
from efficientsam_pl.inference.detector import detect_image, load_detector
from efficientsam_pl.inference.hub import weights_sha256
from efficientsam_pl.models.detection.config import DetectorConfig
from efficientsam_pl.records import CorruptSample, InstanceImage


def run(config: EvaluateConfig) -> None:
    """Evaluate the detector that the config names.

    Raises:
        UserError: Keys that have no effect here, a file that cannot be used, categories other than
            the detector's, or no image to score.
        SavedAndStopped: On a request to stop; the same command continues.
    """
    if config.kind == "lvis":
        raise ConfigError("kind=lvis: a detector is scored on shards or with kind=coco")
    refuse_prompt_keys(config, "a detector")
    score_images(config, partial(DetectionScoring, config))


class DetectionScoring(ImageScoring[LoadedImage, DetectionRecord]):
    """A detector and the annotated images that it is scored on, one at a time."""

    batch = 1

    def __init__(self, config: EvaluateConfig) -> None:
        weights = config.model.weights
        assert weights is not None, "it is among the config's needs"
        self._config = config
        self._model = load_detector(weights).to(device_of(config))
        described = self._model.config
        about = {
            "name": Path(weights).stem,
            "weights_sha256": weights_sha256(weights),
            "resize": f"longest side {described.vit.image_size}",
            "precision": config.precision,
            "config": as_dict(described),
        }
        photos, self._numbers = _open(config, described, weights)
        self._scored = Scored(photos, described, about)
        self.numbers, self.photos = photos.numbers, photos

    def settings(self) -> dict[str, Any]:
        """See ImageScoring."""
        return settings_of(self._scored)

    def parse(self, line: str) -> DetectionRecord:
        """See ImageScoring."""
        return detection_record(line)

    def read(self, number: int) -> LoadedImage | CorruptSample:
        """See ImageScoring."""
        photos = self._scored.photos
        read = photos.photos.read(photos.place(number))
        if isinstance(read, CorruptSample) or photos.shards is not None:
            return read
        return replace(read, about=_numbered(read.about, self._numbers))

    def score(
        self, numbers: Sequence[int], read: Sequence[LoadedImage | CorruptSample]
    ) -> Iterator[DetectionRecord]:
        """Detect the objects of each image, and compare them with its annotations."""
        for number, image in zip(numbers, read, strict=True):
            if isinstance(image, CorruptSample):
                damage = (image.kind, name_of(image), image.detail)
                yield DetectionRecord(number, damage=damage)
                continue
            with torch.no_grad(), autocast(self._config):
                found = detect_image(self._model, image.image)
            objects = detected_objects(found, image.about.image_hw)
            yield DetectionRecord(
                number, compared(image.about, objects), sha256=image.sha256, turn=image.turn
            )

    def result(self, finished: Finished[DetectionRecord], notes: RunNotes) -> Result:
        """See ImageScoring."""
        return merged(self._scored, finished, notes, self._config)

    def table(self, result: Result) -> Table:
        """See ImageScoring."""
        return detection_table(result)

    def summary(self, result: Result) -> str:
        """See ImageScoring."""
        return summary(result)

    def nothing(self) -> str:
        """See ImageScoring."""
        where = self._config.annotations or self._config.shards
        return f"nothing to score in {where}: no image can be used"


def _open(
    config: EvaluateConfig, model: DetectorConfig, weights: str
) -> tuple[EvaluationSet, dict[int, int]]:
    """Open the set; return also the class numbers of its categories.

    Raises:
        UserError: Its categories are not the model's.
    """
    photos = open_set(config)
    if photos.shards is not None:
        categories = packed_categories(photos.shards, "shards")
        numbers = class_numbers(categories)
        annotate = partial(classified_image, numbers=numbers)
        packed = PackedImages(photos.shards, config.exif_orientation, annotate)
        photos = replace(photos, photos=packed)
    else:
        assert photos.annotated is not None, "a set is packed or annotated"
        if not photos.annotated.has_categories:
            raise UserError(f"{config.annotations} lists no category, which a detector tells apart")
        categories = photos.categories
        numbers = class_numbers(categories)
    _check_categories(categories, model, config.annotations or config.shards, weights)
    return photos, numbers


def _check_categories(
    categories: Sequence[Category], model: DetectorConfig, where: str, weights: str
) -> None:
    if len(categories) != model.classes:
        raise UserError(
            f"{where} has {len(categories)} categories, and {weights} tells {model.classes} apart"
        )
    ids = model.category_ids or tuple(category.id for category in categories)
    names = model.labels or tuple(category.name for category in categories)
    known = tuple(Category(number, name) for number, name in zip(ids, names, strict=True))
    if known != tuple(categories):
        difference = describe_difference(categories, known)
        raise UserError(f"{where} has other categories than {weights}: {difference}")


def _numbered(about: InstanceImage, numbers: dict[int, int]) -> InstanceImage:
    """Replace categories by class numbers; instances that name none count nowhere."""
    return replace(
        about,
        instances=tuple(
            replace(instance, category_id=numbers[instance.category_id])
            for instance in about.instances
            if instance.category_id in numbers
        ),
        incomplete=frozenset(numbers[c] for c in about.incomplete if c in numbers),
    )
