"""The Markdown file of the miniature study."""

import datetime
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.harness import machine, versions
from benchmarks.studies.downstream.runs import RunRecord, all_records
from benchmarks.studies.miniature.plan import ARMS, MEASURES, RULES, TEACHER, Plan
from benchmarks.studies.miniature.results import (
    StudentRun,
    differences,
    grouped,
    students,
    teachers,
)
from benchmarks.studies.miniature.runs import (
    LOSS,
    MEAN_FEATURE,
    PRETRAINING,
    TEACHER_TASK,
    accepted_teacher,
)
from benchmarks.studies.miniature.scores import NAMES, Means
from benchmarks.studies.sami_runs import Spread
from efficientsam_pl.storage.atomic import atomic_write_bytes

_LOSSES = (LOSS, MEAN_FEATURE)
_HEADINGS = {
    "box": "box",
    "click1": "1 click",
    "filled_box": "filled box",
    "filled_box_grid": "filled box, grid",
    "reachable": "reachable",
}


def write_markdown(
    out: Path, plan: Plan, command: str, file: Path, pictures: Iterable[str]
) -> None:
    """Write plan, teacher, scores, differences and pictures, as far as they are done.

    Args:
        out: The study's folder.
        plan: What was registered.
        command: Command line of the study.
        file: The file.
        pictures: Names of the pictures beside it.
    """
    runs, records = students(out), all_records(out)
    blocks = ["# The paper in miniature", _head(), f"    {command}"]
    blocks += _plan(plan) + _teacher(out, records)
    if runs:
        blocks += ["## Students", _students(runs), *_differences(runs), *_details(runs)]
    blocks += _pretraining(records)
    blocks += [f"![{name}]({name})" for name in pictures]
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(blocks)
    atomic_write_bytes(file, f"{text}\n".encode())


def _head() -> str:
    host = machine()
    packages = ", ".join(f"{name} {number}" for name, number in versions().items())
    return (
        f"{datetime.date.today().isoformat()}. {host['cpu']}, {host['cores']} cores, "
        f"{host['threads']} threads, load {host['load_1min']}; {packages}."
    )


def _plan(plan: Plan) -> list[str]:
    sizes = "; ".join(f"{key} {_words(value)}" for key, value in plan.sizes.items())
    return [
        "## Plan",
        f"Registered {plan.registered}, before the first run, for {plan.seeds} seeds.",
        "\n".join(f"- `{arm}`: {words}" for arm, words in ARMS.items()),
        "Expected:",
        "\n".join(f"- {line}" for line in plan.as_json()["expected"]),
        "\n".join(f"- {line}" for line in RULES),
        f"Sizes: {sizes}.",
    ]


def _words(value: object) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_words(part)}" for key, part in value.items()) + ")"
    return str(value)


def _teacher(out: Path, records: Sequence[RunRecord]) -> list[str]:
    """Tabulate every teacher that was trained."""
    scored = teachers(out)
    if not scored:
        return []
    taken = {record.encoder: record for record in records if record.task == TEACHER_TASK}
    lines = []
    for name, scores in scored.items():
        gain = scores.mean("box") - scores.mean("filled_box")
        cells = [f"{scores.mean(score):.3f}" for score in NAMES]
        lines.append([name, *cells, f"{gain:+.3f}", _minutes([taken[name]])])
    headings = ["teacher", *_HEADINGS.values(), "box less filled box", "minutes, processor"]
    accepted = accepted_teacher(out)
    words = "No teacher is good enough for students yet."
    if accepted is not None:
        words = f"The students learned from {accepted}."
    return ["## Teacher", _markdown(headings, lines), words]


def _students(runs: Sequence[StudentRun]) -> str:
    lines = []
    for (images, arm), group in grouped(runs).items():
        spreads = (Spread(tuple(run.value(measure) for run in group)) for measure in MEASURES)
        lines.append([images, arm, str(len(group)), *(spread.text(3) for spread in spreads)])
    return _markdown(["images", "arm", "seeds", *MEASURES.values()], lines)


def _differences(runs: Sequence[StudentRun]) -> list[str]:
    lines = []
    for difference in differences(runs):
        half = difference.interval()
        lines.append(
            [
                difference.images if difference.measure != "probe" else "",
                difference.rival,
                MEASURES[difference.measure],
                f"{difference.spread.mean():+.3f}" + ("" if half is None else f" ± {half:.3f}"),
                ", ".join(f"{value:+.3f}" for value in difference.spread.values),
                difference.verdict(),
            ]
        )
    headings = ["images", "rival", "measure", "mean, 95 % interval", "by seed", ""]
    return (
        [f"`{TEACHER}` less each rival, seed by seed:", _markdown(headings, lines)] if lines else []
    )


def _details(runs: Sequence[StudentRun]) -> list[str]:
    """Tabulate the means over the seeds by set and by size."""
    blocks = []
    for what in ("by_set", "by_size"):
        lines = []
        for (images, arm), group in grouped(runs).items():
            for name in getattr(group[0].scores, what):
                members = [getattr(run.scores, what)[name] for run in group]
                if members[0].masks:
                    lines.append([images, arm, name, str(members[0].masks), *_mean_cells(members)])
        headings = ["images", "arm", what.removeprefix("by_"), "masks", *_HEADINGS.values()]
        blocks.append(_markdown(headings, lines))
    return ["Mean IoU by set, then by COCO's sizes over the masks of all sets:", *blocks]


def _pretraining(records: Sequence[RunRecord]) -> list[str]:
    lines = []
    for arm in ARMS:
        group = [r for r in records if (r.task, r.encoder) == (PRETRAINING, arm)]
        if group:
            first = {name: value for r in group for name, value in r.scores.items()}
            cells = (f"{first[name]:.4f}" if name in first else "" for name in _LOSSES)
            lines.append([arm, str(len(group)), *cells, _minutes(group)])
    headings = [
        "arm",
        "runs",
        "held-out loss, first seed",
        "of the mean feature",
        "minutes, processor",
    ]
    return ["## Pretraining", _markdown(headings, lines)] if lines else []


def _minutes(group: Sequence[RunRecord]) -> str:
    return ", ".join(f"{record.processor_s / 60:.1f}" for record in group)


def _mean_cells(members: Sequence[Means]) -> list[str]:
    spreads = (Spread(tuple(getattr(means, name) for means in members)) for name in NAMES)
    return [f"{spread.mean():.3f}" for spread in spreads]


def _markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    table = [headings, ["---"] * len(headings), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)
