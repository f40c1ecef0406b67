"""The result of a classifier's evaluation: accuracies, counts, and everything they depend on."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from rich.table import Table

from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.commands.evaluate.result import RunNotes
from efficientsam_pl.data.datasets.image_sources import sha256_of_all, shards_sha256
from efficientsam_pl.data.datasets.labelled_images import LabelledImages
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.evaluation.results.class_record import ClassRecord, accuracies
from efficientsam_pl.evaluation.results.journal import Finished
from efficientsam_pl.evaluation.results.result_file import Result
from efficientsam_pl.models.classifier_config import ClassifierConfig
from efficientsam_pl.versions import versions

_PROGRAMS = ("efficientsam_pl", "torch", "numpy", "pillow")
_LISTED = 5  # classes at either end of the printed table
PROTOCOL = "classification"


@dataclass(frozen=True)
class Scored:
    """The images of an evaluation, and the model that classifies them."""

    shards: ShardSet
    images: LabelledImages
    numbers: tuple[int, ...]
    model: ClassifierConfig
    about: Mapping[str, Any]

    def protocol(self) -> dict[str, Any]:
        """Describe how images are scored."""
        names = "\n".join(self.model.label(number) for number in range(self.model.classes))
        return {
            "description": "the class among the k most probable ones, of one centre crop",
            "source": "MAE, util/datasets.py and engine_finetune.py",
            "classes": self.model.classes,
            "labels_sha256": hashlib.sha256(names.encode()).hexdigest(),
        }

    def identity(self) -> dict[str, Any]:
        """Hash the set."""
        return {
            "kind": "classes",
            "photos": len(self.numbers),
            "sha256": shards_sha256(self.shards),
        }


def settings_of(scored: Scored) -> dict[str, Any]:
    """Collect what decides the numbers: records made with other settings cannot be reused."""
    return {
        "model": dict(scored.about),
        "data": scored.identity(),
        "protocols": {PROTOCOL: scored.protocol()},
        "versions": versions(*_PROGRAMS),
    }


def merged(
    scored: Scored, finished: Finished[ClassRecord], notes: RunNotes, config: EvaluateConfig
) -> Result:
    """Merge the records of all images, in the order of their numbers."""
    wanted = frozenset(scored.numbers)
    records = [record for record in finished.records() if record.photo in wanted]
    corrupt = [(c.kind, str(c.shard), c.detail) for c in scored.shards.corrupt]
    corrupt += [record.damage for record in records if record.damage is not None]
    good = [record for record in records if record.damage is None]
    by_class = _by_class(good, scored.model)
    named = (f"{scored.images.key(record.photo)} {record.sha256}" for record in good)
    return Result(
        model=dict(scored.about),
        data={**scored.identity(), "images_sha256": sha256_of_all(named)},
        seed=0,
        protocols={PROTOCOL: scored.protocol()},
        numbers={PROTOCOL: {"accuracy": accuracies(good), "top1_by_class": by_class}},
        counts={
            "photos": len(good),
            "damaged_photos": len(records) - len(good),
            "classes_without_photos": scored.model.classes - len(by_class),
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


def class_table(result: Result) -> Table:
    """Tabulate the accuracies, then those of the easiest and of the hardest classes."""
    numbers = result.numbers[PROTOCOL]
    table = Table(title=f"{result.model['name']} on {result.counts['photos']} photos")
    table.add_column()
    table.add_column("accuracy", justify="right")
    for name, value in numbers["accuracy"].items():
        table.add_row(f"{name[:3]}-{name[3:]}", f"{value:.3f}")
    table.add_section()
    ranked = sorted(numbers["top1_by_class"].items(), key=lambda item: -item[1])
    shown = ranked if len(ranked) <= 2 * _LISTED else ranked[:_LISTED] + ranked[-_LISTED:]
    for place, (name, value) in enumerate(shown):
        table.add_row(
            name, f"{value:.3f}", end_section=len(ranked) > len(shown) and place == _LISTED - 1
        )
    return table


def _by_class(records: list[ClassRecord], model: ClassifierConfig) -> dict[str, float]:
    """Compute top-1 of every class that has an image."""
    hits: dict[int, list[bool]] = {}
    for record in records:
        hits.setdefault(record.label, []).append(record.is_hit(1))
    return {model.label(n): sum(hits[n]) / len(hits[n]) for n in sorted(hits)}
