"""The downstream study's table, made from the records of whatever runs have finished."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import Row, machine, versions
from benchmarks.studies.downstream.runs import SCRATCH, RunRecord
from benchmarks.studies.sami_runs import Spread

_ID = "downstream"


@dataclass(frozen=True)
class TaskTable:
    """Title, paragraph and metrics of a task's table, the main metric first."""

    title: str
    words: str
    metrics: Mapping[str, str]  # name in the records -> heading
    curve: str  # the metric whose values along the steps are shown


TABLES = {
    "pretraining": TaskTable(
        "MAE control",
        "Pixels of masked patches, on the training images of all tasks without their labels: 2000 "
        "of Imagenette, 697 of animals, 200 of BSDS500, 367 of CamVid. No image that a task holds "
        "out is among them.",
        {},
        "",
    ),
    "classification": TaskTable(
        "Imagenette: 2000 training and 1000 held-out images, 10 classes",
        "Chance is 0.100. Equal steps, order and crops for both encoders of a seed; one file of "
        "the MAE control for all seeds.",
        {"heldout/top1": "top-1", "heldout/top5": "top-5", "heldout/loss": "loss"},
        "heldout/top1",
    ),
    "classification_long": TaskTable(
        "Imagenette, one longer run from scratch",
        "The same recipe with more steps.",
        {"heldout/top1": "top-1", "heldout/top5": "top-5", "heldout/loss": "loss"},
        "heldout/top1",
    ),
    "detection": TaskTable(
        "animals: 697 training and 210 held-out images, 7 classes",
        "Boxes are those of the masks: some of the file's do not enclose their objects. Three "
        "photos that stand in two parts are left out of training. The mean box of a class is "
        "predicted in every image, scored by the class's share, its mask filled.",
        {
            "heldout/box_ap50": "box AP50",
            "heldout/mask_ap50": "mask AP50",
            "heldout/box_ap": "box AP",
            "heldout/mask_ap": "mask AP",
            "heldout/loss": "loss",
        },
        "heldout/box_ap50",
    ),
    "detection_long": TaskTable(
        "animals, one longer run from the MAE control",
        "The same recipe with twice the steps.",
        {
            "heldout/box_ap50": "box AP50",
            "heldout/mask_ap50": "mask AP50",
            "heldout/box_ap": "box AP",
            "heldout/mask_ap": "mask AP",
            "heldout/loss": "loss",
        },
        "heldout/box_ap50",
    ),
    "semantic": TaskTable(
        "CamVid: 367 training and 101 held-out images, 11 classes",
        "Mean IoU over the classes of the truth, void ignored, at the size that the model sees.",
        {"heldout/miou": "mIoU", "heldout/loss": "loss"},
        "heldout/miou",
    ),
}


def write_table(path: Path, records: Sequence[RunRecord], command: str, words: str) -> None:
    """Write the Markdown file: machine and versions, then a section for each task with records.

    Args:
        path: The file.
        records: Finished runs.
        command: Command line of the study.
        words: A paragraph above the sections.
    """
    host = machine()
    packages = ", ".join(f"{name} {number}" for name, number in versions().items())
    head = (
        f"{datetime.date.today().isoformat()}. {host['cpu']}, {host['cores']} cores, "
        f"{host['threads']} threads, load {host['load_1min']}; {packages}."
    )
    blocks = ["# Do the downstream stages learn?", head, f"    {command}", words]
    for task, table in TABLES.items():
        members = [record for record in records if record.task == task]
        if members:
            blocks += section(members, table)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(blocks) + "\n")


def section(records: Sequence[RunRecord], table: TaskTable) -> list[str]:
    """Write a task's heading, scores by encoder, and curve."""
    groups = by_encoder(records)
    headings = [
        "encoder",
        "seeds",
        *table.metrics.values(),
        "steps",
        "images",
        "seconds, processor",
    ]
    lines = [headings, ["---"] * len(headings)]
    for name, group in groups.items():
        spreads = [scores_of(group, metric) for metric in table.metrics]
        lines.append(
            [
                name,
                str(len(group)),
                *(_cell(spread) for spread in spreads),
                str(group[0].steps or ""),
                str(group[0].images() or ""),
                _seconds(group),
            ]
        )
    blocks = [f"## {table.title}", table.words, _markdown(lines)]
    if table.metrics:
        blocks += _differences(
            groups, next(iter(table.metrics)), next(iter(table.metrics.values()))
        )
    return blocks + _curves(groups, table)


def by_encoder(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Group runs by encoder, untrained and baselines first, each group in the order of seeds."""
    groups: dict[str, list[RunRecord]] = {}
    for record in sorted(records, key=lambda r: (r.steps > 0, r.encoder != SCRATCH, r.seed)):
        groups.setdefault(record.encoder, []).append(record)
    return groups


def scores_of(group: Sequence[RunRecord], metric: str) -> Spread | None:
    """Values of a score over the seeds; None where a run has none."""
    if any(metric not in record.scores for record in group):
        return None
    return Spread(tuple(record.scores[metric] for record in group))


def gain(groups: Mapping[str, Sequence[RunRecord]], name: str, metric: str) -> Spread | None:
    """Subtract scratch's score from an encoder's, over the seeds that both have."""
    fresh = {record.seed: record for record in groups.get(SCRATCH, ())}
    pairs = [(r, fresh[r.seed]) for r in groups[name] if r.seed in fresh and r.steps]
    ours, theirs = (scores_of([pair[side] for pair in pairs], metric) for side in (0, 1))
    if not pairs or ours is None or theirs is None:
        return None
    return ours.less(theirs)


def rows(records: Sequence[RunRecord]) -> list[Row]:
    """Rows of all main scores, for `--json`."""
    result = []
    for task, table in TABLES.items():
        groups = by_encoder([record for record in records if record.task == task])
        for name, group in groups.items():
            for metric, heading in table.metrics.items():
                spread = scores_of(group, metric)
                if spread is not None:
                    result.append(
                        Row(
                            id=f"{_ID}.{task}.{name}.{metric.removeprefix('heldout/')}",
                            work=f"{table.title}: {heading}, {len(group)} seeds of "
                            f"{group[0].steps} steps, {spread.text(4)}",
                            value=spread.mean(),
                            unit="",
                            better="lower" if metric.endswith("loss") else "higher",
                        )
                    )
    return result


def _differences(groups: Mapping[str, Sequence[RunRecord]], metric: str, heading: str) -> list[str]:
    """Say for each pretrained encoder how it differs from scratch, seed by seed."""
    words = []
    for name in groups:
        difference = None if name == SCRATCH else gain(groups, name, metric)
        if difference is not None:
            each = ", ".join(f"{value:+.3f}" for value in difference.values)
            words.append(f"{name} less {SCRATCH}, {heading}: {each} by seed.")
    return words


def _curves(groups: Mapping[str, Sequence[RunRecord]], table: TaskTable) -> list[str]:
    """Tabulate a metric along the steps, all seeds side by side."""
    trained = [r for group in groups.values() for r in group if table.curve in r.curve]
    if not trained:
        return []
    steps = sorted({step for record in trained for step in record.curve[table.curve]})
    headings = ["step", *(f"{record.encoder} {record.seed}" for record in trained)]
    lines = [headings, ["---"] * len(headings)]
    for step in steps:
        cells = (record.curve[table.curve].get(step) for record in trained)
        lines.append([str(step), *("" if cell is None else f"{cell:.3f}" for cell in cells)])
    return [f"{table.metrics[table.curve]} along the steps, by encoder and seed:", _markdown(lines)]


def _cell(spread: Spread | None) -> str:
    """Write mean and deviation; the value alone of a single seed, nothing where there is none."""
    if spread is None:
        return ""
    return spread.text(3) if len(spread.values) > 1 else f"{spread.mean():.3f}"


def _seconds(group: Sequence[RunRecord]) -> str:
    times = [f"{record.processor_s:.0f}" for record in group if record.processor_s]
    return ", ".join(times)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
