"""What the trials of a fault campaign have shown: a file that grows, a table, and rows."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from benchmarks.harness import Row
from efficientsam_pl.storage.atomic import atomic_write_bytes

WANTED = 30  # trials, of all kinds together
_MOST = 1e9  # stands for a difference that is no number, which JSON has no word for

_HEADINGS = (
    "fault",
    "trials",
    "finished",
    "restarts",
    "hangs",
    "samples lost",
    "samples doubled",
    "bit-equal",
    "within tolerance",
    "worst difference",
    "seconds lost",
)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A run that a fault has hit, and how it compares with its reference."""

    number: int  # of this seed's trials
    seed: int
    kind: str
    setting: str
    detail: str  # which fault came when
    finished: bool
    hung: bool  # not over at its deadline
    restarts: int  # of all its jobs: starts after the first
    lost: int
    doubled: int
    bit_equal: bool
    tolerance: float | None  # None: it was to be bit-equal
    worst: float | None  # difference of a loss or of a number of the state; None: not compared
    seconds: float
    seconds_lost: float  # over the reference's, from the submission to the end
    told: tuple[str, ...]  # what went wrong; empty: nothing did

    def passed(self) -> bool:
        """Finished in time with the samples and numbers that it should have."""
        return self.finished and not self.hung and not self.told


def read_tally(path: Path | None) -> list[Trial]:
    """The trials of earlier calls; none where there is no file yet."""
    if path is None or not path.is_file():
        return []
    trials = json.loads(path.read_text())["trials"]
    return [Trial(**trial | {"told": tuple(trial["told"])}) for trial in trials]


def write_tally(path: Path | None, trials: Sequence[Trial]) -> None:
    """Write all trials atomically, so that a killed call leaves the file of the call before."""
    if path is None:
        return
    text = json.dumps({"trials": [asdict(trial) for trial in trials]}, indent=1)
    atomic_write_bytes(path, (text + "\n").encode())


def cells(trials: Sequence[Trial]) -> list[tuple[str, ...]]:
    """A row a kind in the order of their names, and one of all."""
    kinds = sorted({trial.kind for trial in trials})
    groups = [(kind, [t for t in trials if t.kind == kind]) for kind in kinds]
    return [_cells(name, group) for name, group in (*groups, ("all", list(trials))) if group]


def table(trials: Sequence[Trial]) -> Table:
    """For a terminal."""
    shown = Table(*_HEADINGS, title="faults")
    for row in cells(trials):
        shown.add_row(*row)
    return shown


def markdown(trials: Sequence[Trial]) -> str:
    """For benchmarks/results/."""
    lines = [_HEADINGS, ("---",) * len(_HEADINGS), *cells(trials)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rows(trials: Sequence[Trial]) -> list[Row]:
    """What other programs look for; empty where no trial has been made."""
    if not trials:
        return []
    strict = [trial for trial in trials if trial.tolerance is None]
    loose = [trial for trial in trials if trial.tolerance is not None]
    found = [
        _row("trials", "made so far, of all kinds", len(trials), WANTED, "higher"),
        _row("finished", "share", _share([t.finished for t in trials]), 1.0, "higher"),
        _row("hangs", "not over at their deadline", sum(t.hung for t in trials), 0),
        _row("samples_lost", "uses in all trials", sum(t.lost for t in trials), 0),
        _row("samples_doubled", "uses in all trials", sum(t.doubled for t in trials), 0),
    ]
    if strict:
        told = f"share of {len(strict)} with the reference's ranks and strategy"
        bit_equal = _share([trial.bit_equal for trial in strict])
        found.append(_row("bit_equal", told, bit_equal, 1.0, "higher"))
    if loose:
        told = f"share of {len(loose)} that went on under other ranks or another strategy"
        within = _share([trial.passed() for trial in loose])
        found.append(_row("within_tolerance", told, within, 1.0, "higher"))
        worst = max(_MOST if t.worst is None else min(t.worst, _MOST) for t in loose)
        found.append(_row("worst_difference", "of the same, absolute", worst, None))
    lost = statistics.median(trial.seconds_lost for trial in trials)
    found.append(_row("seconds_lost", "median over the reference's time", lost, None))
    for kind in sorted({trial.kind for trial in trials}):
        own = [trial for trial in trials if trial.kind == kind]
        passed = _share([trial.passed() for trial in own])
        name = f"{kind.replace(' ', '_')}.passed"
        found.append(_row(name, f"share of {len(own)} trials", passed, 1.0, "higher"))
    return found


def _cells(name: str, trials: Sequence[Trial]) -> tuple[str, ...]:
    strict = [trial for trial in trials if trial.tolerance is None]
    loose = [trial for trial in trials if trial.tolerance is not None]
    worst = [trial.worst for trial in trials if trial.worst is not None]
    return (
        name,
        str(len(trials)),
        str(sum(trial.finished for trial in trials)),
        str(sum(trial.restarts for trial in trials)),
        str(sum(trial.hung for trial in trials)),
        str(sum(trial.lost for trial in trials)),
        str(sum(trial.doubled for trial in trials)),
        f"{sum(trial.bit_equal for trial in strict)} of {len(strict)}" if strict else "",
        f"{sum(trial.passed() for trial in loose)} of {len(loose)}" if loose else "",
        f"{max(worst):.2g}" if worst else "not compared",
        f"{statistics.median(trial.seconds_lost for trial in trials):.0f}",
    )


def _row(name: str, work: str, value: float, goal: float | None, better: str = "lower") -> Row:
    unit = {"seconds_lost": "s", "worst_difference": ""}.get(name, "")
    return Row(
        id=f"faults.{name}",
        work=work,
        value=float(value),
        unit=unit,
        goal=goal,
        better="higher" if better == "higher" else "lower",
    )


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)
