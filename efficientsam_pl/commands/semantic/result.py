"""The result of a semantic evaluation: mean IoU, counts, and everything they depend on."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from rich.table import Table

from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.commands.evaluate.result import RunNotes
from efficientsam_pl.data.datasets.image_sources import sha256_of_all, shards_sha256
from efficientsam_pl.data.datasets.semantic_images import SemanticImages
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.evaluation.metrics.semantic_iou import (
    class_ious,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
)
from efficientsam_pl.evaluation.results.journal import Finished
from efficientsam_pl.evaluation.results.published import SEMANTIC
from efficientsam_pl.evaluation.results.result_file import Result
from efficientsam_pl.evaluation.results.semantic_record import SemanticRecord, summed
from efficientsam_pl.models.semantic.config import SemanticConfig
from efficientsam_pl.versions import versions

_PROGRAMS = ("efficientsam_pl", "torch", "torchmetrics", "numpy", "pillow")
_LISTED = 5  # classes at either end of the printed table


@dataclass(frozen=True)
class Scored:
    """The images of an evaluation, and the model that segments them."""

    shards: ShardSet
    images: SemanticImages
    numbers: tuple[int, ...]
    model: SemanticConfig
    about: Mapping[str, Any]

    def protocol(self) -> dict[str, Any]:
        """Describe how images are scored."""
        names = "\n".join(self.model.label(number) for number in range(self.model.classes))
        return {
            "description": "IoU of classes over all pixels, at the image's size, single scale; "
            "the mean over the classes of the truth",
            "source": "Mask2Former, maskformer_model.py; detectron2, SemSegEvaluator",
            "classes": self.model.classes,
            "labels_sha256": hashlib.sha256(names.encode()).hexdigest(),
        }

    def identity(self) -> dict[str, Any]:
        """Hash the set."""
        return {
            "kind": "label maps",
            "photos": len(self.numbers),
            "sha256": shards_sha256(self.shards),
        }


def settings_of(scored: Scored) -> dict[str, Any]:
    """Collect what decides the numbers: records made with other settings cannot be reused."""
    return {
        "model": dict(scored.about),
        "data": scored.identity(),
        "protocols": {SEMANTIC: scored.protocol()},
        "versions": versions(*_PROGRAMS),
    }


def merged(
    scored: Scored, finished: Finished[SemanticRecord], notes: RunNotes, config: EvaluateConfig
) -> Result:
    """Merge the records of all images, in the order of their numbers."""
    wanted = frozenset(scored.numbers)
    records = [record for record in finished.records() if record.photo in wanted]
    corrupt = [(c.kind, str(c.shard), c.detail) for c in scored.shards.corrupt]
    corrupt += [record.damage for record in records if record.damage is not None]
    good = [record for record in records if record.damage is None]
    named = (f"{scored.images.key(record.photo)} {record.sha256}" for record in good)
    numbers = scores(good, scored.model)
    return Result(
        model=dict(scored.about),
        data={**scored.identity(), "images_sha256": sha256_of_all(named)},
        seed=0,
        protocols={SEMANTIC: scored.protocol()},
        numbers={SEMANTIC: numbers},
        counts={
            "photos": len(good),
            "damaged_photos": len(records) - len(good),
            "ignored_photos": sum(not record.pairs for record in good),
            "classes_without_photos": scored.model.classes - len(numbers["iou_by_class"]),
        },
        damaged=[{"photo": name, "kind": kind} for kind, name, _ in sorted(corrupt)],
        versions=versions(*_PROGRAMS),
        run={
            **asdict(notes),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "paths": {"shards": config.shards, "weights": config.model.weights},
            "damage": sorted(corrupt),
        },
    )


def scores(records: list[SemanticRecord], model: SemanticConfig) -> dict[str, Any]:
    """Compute the numbers of a set; None where no pixel has a class."""
    matrix = summed(records, model.classes)
    by_class = {
        model.label(number): value
        for number, value in enumerate(class_ious(matrix).tolist())
        if not math.isnan(value)
    }
    return {
        "miou": {"all": mean_iou(matrix) if by_class else None},
        "pixel_accuracy": pixel_accuracy(matrix) if by_class else None,
        "mean_class_accuracy": mean_accuracy(matrix) if by_class else None,
        "iou_by_class": by_class,
    }


def class_table(result: Result) -> Table:
    """Tabulate the means, then the easiest and the hardest classes."""
    numbers = result.numbers[SEMANTIC]
    table = Table(title=f"{result.model['name']} on {result.counts['photos']} photos")
    table.add_column()
    table.add_column("", justify="right")
    for name, value in (
        ("mean IoU", numbers["miou"]["all"]),
        ("pixel accuracy", numbers["pixel_accuracy"]),
        ("mean class accuracy", numbers["mean_class_accuracy"]),
    ):
        table.add_row(name, "" if value is None else f"{value:.3f}")
    table.add_section()
    ranked = sorted(numbers["iou_by_class"].items(), key=lambda item: -item[1])
    shown = ranked if len(ranked) <= 3 * _LISTED else ranked[:_LISTED] + ranked[-_LISTED:]
    for place, (name, value) in enumerate(shown):
        ends = len(ranked) > len(shown) and place == _LISTED - 1
        table.add_row(f"IoU of {name}", f"{value:.3f}", end_section=ends)
    return table
