"""The miniature study's results: a JSON file and a Markdown file of whatever is done."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Row
from benchmarks.studies.downstream.runs import all_records
from benchmarks.studies.miniature.plan import ARMS, MEASURES, RIVALS, SUBSETS, TEACHER, Plan
from benchmarks.studies.miniature.runs import TEACHER_TASK, accepted_teacher, probe_of
from benchmarks.studies.miniature.scores import HeldoutScores, read_scores
from benchmarks.studies.sami_runs import Spread
from efficientsam_pl.storage.atomic import atomic_write_bytes

NAME = "miniature"
# Student's t at 97.5 %, by degrees of freedom
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
_T_BEYOND = 2.262  # an upper bound beyond


@dataclass(frozen=True)
class StudentRun:
    """A finetuned student: its held-out scores, and the probe of the encoder it began with."""

    arm: str
    seed: int
    images: str  # few or all
    scores: HeldoutScores
    probe: float

    def value(self, measure: str) -> float:
        """Return box or 1-click mIoU, mean over the sets, or the probe's accuracy."""
        return self.probe if measure == "probe" else self.scores.mean(measure)

    def as_json(self) -> dict[str, Any]:
        """Convert to JSON."""
        values = {measure: round(self.value(measure), 5) for measure in MEASURES}
        return {"arm": self.arm, "seed": self.seed, "images": self.images, **values}


@dataclass(frozen=True)
class Difference:
    """Values of SAMI's arm less those of another, seed by seed."""

    rival: str
    images: str
    measure: str
    spread: Spread

    def interval(self) -> float | None:
        """Half the width of the mean's 95 % interval; None for a single seed."""
        count = len(self.spread.values)
        if count < 2:
            return None
        quantile = _T.get(count - 1, _T_BEYOND)
        return float(quantile * self.spread.std() / count**0.5)

    def verdict(self) -> str:
        """Say whether the interval excludes 0."""
        half = self.interval()
        if half is None or abs(self.spread.mean()) <= half:
            return "open"
        return "ahead" if self.spread.mean() > 0 else "behind"


def students(out: Path) -> list[StudentRun]:
    """Read the students that are done, by subset, arm and seed."""
    done = []
    for images in SUBSETS:
        for arm in ARMS:
            for folder in sorted(out.glob(f"{images}-{arm}-*"), key=_seed_of):
                scores, probe = read_scores(folder), probe_of(out, arm, _seed_of(folder))
                if scores is not None and probe is not None:
                    done.append(StudentRun(arm, _seed_of(folder), images, scores, probe))
    return done


def differences(runs: Sequence[StudentRun]) -> list[Difference]:
    """Subtract each rival's values from SAMI's, over the seeds that both have.

    The probe does not depend on the images of finetuning: it is compared once.
    """
    result = []
    for images in SUBSETS:
        by_seed = {
            arm: {run.seed: run for run in runs if (run.arm, run.images) == (arm, images)}
            for arm in ARMS
        }
        for rival in RIVALS:
            pairs = [
                (run, by_seed[rival][seed])
                for seed, run in sorted(by_seed[TEACHER].items())
                if seed in by_seed[rival]
            ]
            for measure in MEASURES:
                if pairs and (measure != "probe" or images == SUBSETS[-1]):
                    gains = (ours.value(measure) - theirs.value(measure) for ours, theirs in pairs)
                    result.append(Difference(rival, images, measure, Spread(tuple(gains))))
    return result


def as_json(out: Path, plan: Plan) -> dict[str, Any]:
    """Collect runs, teacher and plan, as far as they are done.

    The teacher is the accepted one, else the one that was trained for longest.
    """
    content: dict[str, Any] = {"runs": [run.as_json() for run in students(out)]}
    scored = teachers(out)
    if scored:
        name = accepted_teacher(out) or list(scored)[-1]
        scores = scored[name]
        content["teacher"] = {key: round(scores.mean(key), 5) for key in ("box", "filled_box")}
    return content | {"plan": plan.as_json()}


def teachers(out: Path) -> dict[str, HeldoutScores]:
    """Read the scores of all teachers that were trained, by name, the longest training last."""
    records = [record for record in all_records(out) if record.task == TEACHER_TASK]
    scored = {
        record.encoder: read_scores(out / f"{TEACHER_TASK}-{record.encoder}-{record.seed}")
        for record in sorted(records, key=lambda record: record.steps)
    }
    return {name: scores for name, scores in scored.items() if scores is not None}


def write_json(out: Path, plan: Plan, file: Path) -> None:
    """Write the JSON file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_json(out, plan), indent=1, allow_nan=False)
    atomic_write_bytes(file, f"{text}\n".encode())


def rows(runs: Sequence[StudentRun]) -> list[Row]:
    """Rows of all means and differences, for `--json`."""
    result = []
    for (images, arm), group in grouped(runs).items():
        for measure, words in MEASURES.items():
            spread = Spread(tuple(run.value(measure) for run in group))
            result.append(
                Row(
                    id=f"{NAME}.{images}.{arm}.{measure}",
                    work=f"{words}, finetuned on {images} images, {len(group)} seeds, "
                    f"{spread.text(3)}",
                    value=spread.mean(),
                    unit="",
                    better="higher",
                )
            )
    for difference in differences(runs):
        result.append(
            Row(
                id=f"{NAME}.{difference.images}.over_{difference.rival}.{difference.measure}",
                work=f"{TEACHER} less {difference.rival}, seed by seed, "
                f"{difference.spread.text(3)}: {difference.verdict()}",
                value=difference.spread.mean(),
                unit="",
                better="higher",
            )
        )
    return result


def grouped(runs: Sequence[StudentRun]) -> Mapping[tuple[str, str], list[StudentRun]]:
    """Group runs by images and arm, in the order of the plan."""
    groups: dict[tuple[str, str], list[StudentRun]] = {}
    for run in runs:
        groups.setdefault((run.images, run.arm), []).append(run)
    return groups


def _seed_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])
