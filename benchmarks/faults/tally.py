"""Results of a fault campaign: the tally file, a table, and rows."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.harness import Row
from efficientsam_pl.storage.atomic import atomic_write_bytes

WANTED = 30  # trials, of all kinds together
_MOST = 1e9  # replaces a non-finite difference, which JSON cannot represent

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
    """A run with an injected fault, and how it compares with its reference."""

    number: int  # of this seed's trials
    seed: int
    kind: str
    setting: str
    detail: str  # which fault occurred when
    finished: bool
    hung: bool  # not finished at its deadline
    restarts: int  # starts after the first, of all its jobs
    lost: int
    doubled: int
    bit_equal: bool
    tolerance: float | None  # None: it must be bit-equal
    worst: float | None  # difference of a loss or a value of the state; None: not compared
    seconds: float
    seconds_lost: float  # more than the reference, from submission to end
    problems: tuple[str, ...]  # empty: none

    def passed(self) -> bool:
        """Whether the run finished in time with the expected samples and results."""
        return self.finished and not self.hung and not self.problems

    def as_json(self) -> dict[str, Any]:
        """Convert to an entry of the tally file, under whose older key the problems stand."""
        entry = asdict(self)
        entry["told"] = entry.pop("problems")
        return entry

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> "Trial":
        """Restore a trial from an entry of the tally file."""
        values = dict(entry)
        return Trial(problems=tuple(values.pop("told")), **values)


def read_tally(path: Path | None) -> list[Trial]:
    """Read the trials of earlier calls; empty if there is no file yet."""
    if path is None or not path.is_file():
        return []
    trials = json.loads(path.read_text())["trials"]
    return [Trial.from_json(trial) for trial in trials]


def write_tally(path: Path | None, trials: Sequence[Trial]) -> None:
    """Write all trials atomically, so that a killed call leaves the file of the call before."""
    if path is None:
        return
    text = json.dumps({"trials": [trial.as_json() for trial in trials]}, indent=1)
    atomic_write_bytes(path, (text + "\n").encode())


def cells(trials: Sequence[Trial]) -> list[tuple[str, ...]]:
    """Rows of cells: each kind by name, then all trials together."""
    kinds = sorted({trial.kind for trial in trials})
    groups = [(kind, [t for t in trials if t.kind == kind]) for kind in kinds]
    return [_cells(name, group) for name, group in (*groups, ("all", list(trials))) if group]


def table(trials: Sequence[Trial]) -> Table:
    """Format the trials for a terminal."""
    shown = Table(*_HEADINGS, title="faults")
    for row in cells(trials):
        shown.add_row(*row)
    return shown


def markdown(trials: Sequence[Trial]) -> str:
    """Format the trials for benchmarks/results/."""
    lines = [_HEADINGS, ("---",) * len(_HEADINGS), *cells(trials)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rows(trials: Sequence[Trial]) -> list[Row]:
    """Rows for other programs; empty if there are no trials."""
    if not trials:
        return []
    strict = [trial for trial in trials if trial.tolerance is None]
    loose = [trial for trial in trials if trial.tolerance is not None]
    figures = [
        _row("trials", "made so far, of all kinds", len(trials), WANTED, "higher"),
        _row("finished", "share", _share([t.finished for t in trials]), 1.0, "higher"),
        _row("hangs", "not finished at their deadline", sum(t.hung for t in trials), 0),
        _row("samples_lost", "uses in all trials", sum(t.lost for t in trials), 0),
        _row("samples_doubled", "uses in all trials", sum(t.doubled for t in trials), 0),
    ]
    if strict:
        work = f"share of {len(strict)} with the reference's ranks and strategy"
        bit_equal = _share([trial.bit_equal for trial in strict])
        figures.append(_row("bit_equal", work, bit_equal, 1.0, "higher"))
    if loose:
        work = f"share of {len(loose)} that resumed on other ranks or under another strategy"
        within = _share([trial.passed() for trial in loose])
        figures.append(_row("within_tolerance", work, within, 1.0, "higher"))
        worst = max(_MOST if t.worst is None else min(t.worst, _MOST) for t in loose)
        figures.append(_row("worst_difference", "of the same, absolute", worst, None))
    lost = statistics.median(trial.seconds_lost for trial in trials)
    figures.append(_row("seconds_lost", "median over the reference's time", lost, None))
    for kind in sorted({trial.kind for trial in trials}):
        group = [trial for trial in trials if trial.kind == kind]
        passed = _share([trial.passed() for trial in group])
        name = f"{kind.replace(' ', '_')}.passed"
        figures.append(_row(name, f"share of {len(group)} trials", passed, 1.0, "higher"))
    return figures


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
