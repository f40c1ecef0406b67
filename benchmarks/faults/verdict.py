"""Compare an interrupted run with its uninterrupted reference; pure functions.

Three things are compared: which samples the optimizer used in which step, the loss of every step,
and the final state: weights, EMA and optimizer state.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from efficientsam_pl.checkpoints.layout import read_pointer
from efficientsam_pl.checkpoints.reader import CheckpointReader

_MAX_NAMED = 5  # wrong keys or steps in a message


@dataclass(frozen=True)
class Consumed:
    """A line of `consumed.jsonl`: a micro-batch of one rank in one optimizer step."""

    step: int
    rank: int
    keys: tuple[str, ...]
    loss: float


@dataclass(frozen=True)
class RunResult:
    """Results of a finished run: its trace and the tensors of its last checkpoint."""

    consumed: tuple[Consumed, ...]
    state: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Differences of a run from its reference; absolute, inf if not finite.

    `lost` and `doubled` count uses of samples by the optimizer, `moved` those in another step than
    in the reference.
    """

    steps: int
    lost: int
    doubled: int
    moved: int
    loss_difference: float
    state_difference: float
    bit_equal: bool
    tolerance: float | None
    problems: tuple[str, ...]  # a sentence each; empty: none

    def accepted(self) -> bool:
        """Whether all samples were used as expected, and the results agree within tolerance."""
        return not self.problems

    def worst(self) -> float:
        """Larger of the two differences."""
        return max(self.loss_difference, self.state_difference)


def compare(run: Path, reference: Path, tolerance: float | None) -> Verdict:
    """Compare the folder of a run (`run.trace=true`) with that of its reference.

    Args:
        run: Folder of a finished run, however often it was interrupted.
        reference: Folder of an uninterrupted run of the same recipe.
        tolerance: Largest absolute difference of a step's loss and of a value of the state;
            None: bit-equal, as required if world size, strategy and float32 stay.

    Raises:
        ValueError: A folder has no trace or no checkpoint, or a trace has an incomplete line.
    """
    return judge(read_result(run), read_result(reference), tolerance)


def read_result(run: Path) -> RunResult:
    """Read a run's folder. Raises as `compare`."""
    checkpoint = read_pointer(run / "latest")
    if checkpoint is None:
        raise ValueError(f"{run} has no checkpoint")
    return RunResult(tuple(read_trace(run)), CheckpointReader(checkpoint).load_all())


def read_trace(run: Path) -> list[Consumed]:
    """Read the lines of `consumed.jsonl`, sorted by step and rank."""
    path = run / "consumed.jsonl"
    if not path.is_file():
        raise ValueError(f"{path} is missing: was the run started with run.trace=true?")
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), start=1):
        try:
            line = json.loads(text)
            keys = tuple(line["keys"])
            lines.append(Consumed(line["step"], line["rank"], keys, float(line["loss"])))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is incomplete: {text[:80]!r}") from error
    return sorted(lines, key=lambda line: (line.step, line.rank))


def judge(run: RunResult, reference: RunResult, tolerance: float | None) -> Verdict:
    """Compare a run with its reference; see `compare`."""
    ours, theirs = by_step(run.consumed), by_step(reference.consumed)
    lost, doubled, moved = samples_astray(ours, theirs)
    problems = [
        *_describe("lost: the reference used", lost),
        *_describe("too many: the reference did not use", doubled),
        *_describe("in another step than in the reference:", moved),
    ]
    if not problems:  # two runs that agree may both be wrong
        samples = {key for used in theirs.values() for key in used}
        lost, doubled = uses_astray([ours[step] for step in sorted(ours)], samples)
        problems += [
            *_describe("lost: an epoch lacked", lost),
            *_describe("too many: an epoch used twice", doubled),
        ]
    loss, step = _worst_loss(_losses(run.consumed), _losses(reference.consumed))
    number, name = _worst_tensor(run.state, reference.state)
    same = _losses(run.consumed) == _losses(reference.consumed) and number == 0
    if sorted(ours) != sorted(theirs):
        problems.append(f"steps {_span(ours)}, the reference's {_span(theirs)}")
    allowed = 0.0 if tolerance is None else tolerance
    if loss > allowed:
        problems.append(f"the loss of step {step} differs by {loss:.3g}, allowed is {allowed:.3g}")
    if number > allowed:
        problems.append(f"{name} differs by {number:.3g}, allowed is {allowed:.3g}")
    if tolerance is None and not same and not problems:
        problems.append("the ranks' micro-batches are not the reference's")
    return Verdict(
        steps=len(ours),
        lost=lost.total(),
        doubled=doubled.total(),
        moved=moved.total(),
        loss_difference=loss,
        state_difference=number,
        bit_equal=same,
        tolerance=tolerance,
        problems=tuple(problems),
    )


def by_step(lines: Sequence[Consumed]) -> dict[int, Counter[str]]:
    """Count uses of each sample in each step, over all ranks and micro-batches."""
    steps: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for line in lines:
        steps[line.step].update(line.keys)
    return dict(steps)


def samples_astray(
    ours: Mapping[int, Counter[str]], theirs: Mapping[int, Counter[str]]
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Count uses that are missing, that are surplus, and that are in another step."""
    none: Counter[str] = Counter()
    all_ours = sum(ours.values(), Counter[str]())
    all_theirs = sum(theirs.values(), Counter[str]())
    lost, doubled = all_theirs - all_ours, all_ours - all_theirs
    absent = sum((used - ours.get(step, none) for step, used in theirs.items()), Counter[str]())
    return lost, doubled, absent - lost


def uses_astray(
    steps: Sequence[Counter[str]], samples: set[str]
) -> tuple[Counter[str], Counter[str]]:
    """Count samples that an epoch missed or used twice, without a reference.

    If epochs follow each other without a gap (`data.last_batch=carry`), every sample has been used
    e or e + 1 times at the end of any step, where e is the number of completed epochs; if an epoch
    ends with the step, e times.

    Args:
        steps: Samples used by each step, in order.
        samples: All samples.
    """
    lost: Counter[str] = Counter()
    doubled: Counter[str] = Counter()
    used: Counter[str] = Counter()
    for step in steps:
        used.update(step)
        epochs, begun = divmod(used.total(), len(samples))
        most = epochs + (begun > 0)
        for key in samples | set(step):
            lost[key] = max(lost[key], epochs - used[key])
            doubled[key] = max(doubled[key], used[key] - most)
    return +lost, +doubled


def _losses(lines: Sequence[Consumed]) -> dict[int, list[tuple[tuple[str, ...], float]]]:
    """Micro-batches and losses by step, in an order independent of ranks."""
    steps: defaultdict[int, list[tuple[tuple[str, ...], float]]] = defaultdict(list)
    for line in lines:
        steps[line.step].append((line.keys, line.loss))
    return {step: sorted(batches) for step, batches in steps.items()}


def _worst_loss(
    ours: Mapping[int, list[tuple[tuple[str, ...], float]]],
    theirs: Mapping[int, list[tuple[tuple[str, ...], float]]],
) -> tuple[float, int]:
    """Find the largest difference of a loss among common steps, and its step.

    Compares micro-batches if both split the step equally, else the means over its samples.
    """
    worst, at = 0.0, -1
    for step in sorted(ours.keys() & theirs.keys()):
        mine, other = ours[step], theirs[step]
        if [keys for keys, _ in mine] == [keys for keys, _ in other]:
            pairs = [(a, b) for (_, a), (_, b) in zip(mine, other, strict=True)]
        else:
            pairs = [(_mean(mine), _mean(other))]
        for a, b in pairs:
            difference = _number(abs(a - b))
            if difference > worst:
                worst, at = difference, step
    return worst, at


def _mean(batches: Sequence[tuple[tuple[str, ...], float]]) -> float:
    return sum(len(keys) * loss for keys, loss in batches) / sum(len(keys) for keys, _ in batches)


def _worst_tensor(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[float, str]:
    """Find the largest difference of a tensor, and its name; inf if names or shapes differ."""
    if odd := ours.keys() ^ theirs.keys():
        return math.inf, sorted(odd)[0]
    worst, where = 0.0, ""
    for name, mine in ours.items():
        other = theirs[name]
        if mine.shape != other.shape or mine.dtype != other.dtype:
            return math.inf, name
        difference = float((mine.double() - other.double()).abs().nan_to_num(nan=math.inf).max())
        if difference > worst:
            worst, where = difference, name
    return worst, where


def _number(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _describe(what: str, keys: Counter[str]) -> list[str]:
    if not keys:
        return []
    named = sorted(keys)[:_MAX_NAMED]
    more = f" and {len(keys) - _MAX_NAMED} more" if len(keys) > _MAX_NAMED else ""
    return [f"{keys.total()} uses {what} {', '.join(named)}{more}"]


def _span(steps: Mapping[int, object]) -> str:
    missing = set(range(min(steps), max(steps) + 1)) - set(steps) if steps else set()
    gaps = f" without {sorted(missing)[:_MAX_NAMED]}" if missing else ""
    return f"{min(steps)} to {max(steps)}{gaps}" if steps else "none"
