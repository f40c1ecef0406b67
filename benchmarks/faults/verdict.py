"""Whether a run that was disturbed did what its undisturbed reference did: a pure function.

Three things are compared: which samples the optimizer has used and in which step, the loss of
every step, and the state at the end: weights, averages, and what the optimizer remembers.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from efficientsam_pl.checkpoints.layout import pointed_to
from efficientsam_pl.checkpoints.reader import CheckpointReader

_TOLD = 5  # of the keys or steps that are wrong, in a sentence


@dataclass(frozen=True)
class Consumed:
    """A line of `consumed.jsonl`: a micro-batch of one rank in one optimizer step."""

    step: int
    rank: int
    keys: tuple[str, ...]
    loss: float


@dataclass(frozen=True)
class Left:
    """What a finished run leaves: what it has consumed, and its last checkpoint's tensors."""

    consumed: tuple[Consumed, ...]
    state: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a run differs from its reference. The differences are absolute; inf where not a number.

    `lost` and `doubled` count uses of samples by the optimizer, `moved` those in another step than
    the reference's.
    """

    steps: int
    lost: int
    doubled: int
    moved: int
    loss_difference: float
    state_difference: float
    bit_equal: bool
    tolerance: float | None
    told: tuple[str, ...]  # what is wrong, a sentence each; empty: nothing is

    def accepted(self) -> bool:
        """Whether every sample was used as it should be, and numbers agree as far as asked for."""
        return not self.told

    def worst(self) -> float:
        """The greater difference."""
        return max(self.loss_difference, self.state_difference)


def compare(run: Path, reference: Path, tolerance: float | None) -> Verdict:
    """Reads two run folders (`run.trace=true`) and judges the first by the second.

    Args:
        run: Of a finished run, however often it was interrupted.
        reference: Of a run of the same recipe that was not.
        tolerance: Greatest absolute difference of a step's loss and of a number of the state;
            None: the same bits, as is to be where world size, strategy and float32 stay.

    Raises:
        ValueError: A folder without a trace or a checkpoint, or a trace with a line that is cut.
    """
    return judge(left_by(run), left_by(reference), tolerance)


def left_by(run: Path) -> Left:
    """What a run's folder holds. See `compare` for what is raised."""
    checkpoint = pointed_to(run / "latest")
    if checkpoint is None:
        raise ValueError(f"{run} has no checkpoint")
    return Left(tuple(consumed_by(run)), CheckpointReader(checkpoint).whole_state())


def consumed_by(run: Path) -> list[Consumed]:
    """The lines of `consumed.jsonl`, by step, then rank, then as they were written."""
    path = run / "consumed.jsonl"
    if not path.is_file():
        raise ValueError(f"{path} is not there: was it run with run.trace=true?")
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), start=1):
        try:
            line = json.loads(text)
            keys = tuple(line["keys"])
            lines.append(Consumed(line["step"], line["rank"], keys, float(line["loss"])))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is cut: {text[:80]!r}") from error
    return sorted(lines, key=lambda line: (line.step, line.rank))


def judge(run: Left, reference: Left, tolerance: float | None) -> Verdict:
    """How a run differs from its reference; see `compare`."""
    ours, theirs = by_step(run.consumed), by_step(reference.consumed)
    lost, doubled, moved = samples_astray(ours, theirs)
    told = [
        *_told("lost: the reference used", lost),
        *_told("too many: the reference did not use", doubled),
        *_told("in another step than the reference's:", moved),
    ]
    if not told:  # two that agree may both be wrong
        samples = {key for used in theirs.values() for key in used}
        lost, doubled = uses_astray([ours[step] for step in sorted(ours)], samples)
        told += [
            *_told("lost: an epoch went without", lost),
            *_told("too many: an epoch had twice", doubled),
        ]
    loss, step = _worst_loss(_losses(run.consumed), _losses(reference.consumed))
    number, name = _worst_tensor(run.state, reference.state)
    same = _losses(run.consumed) == _losses(reference.consumed) and number == 0
    if sorted(ours) != sorted(theirs):
        told.append(f"steps {_span(ours)}, the reference's {_span(theirs)}")
    allowed = 0.0 if tolerance is None else tolerance
    if loss > allowed:
        told.append(f"the loss of step {step} differs by {loss:.3g}, allowed is {allowed:.3g}")
    if number > allowed:
        told.append(f"{name} differs by {number:.3g}, allowed is {allowed:.3g}")
    if tolerance is None and not same and not told:
        told.append("the ranks' micro-batches are not the reference's")
    return Verdict(
        steps=len(ours),
        lost=lost.total(),
        doubled=doubled.total(),
        moved=moved.total(),
        loss_difference=loss,
        state_difference=number,
        bit_equal=same,
        tolerance=tolerance,
        told=tuple(told),
    )


def by_step(lines: Sequence[Consumed]) -> dict[int, Counter[str]]:
    """How often each sample was used in each step, over all ranks and micro-batches."""
    steps: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for line in lines:
        steps[line.step].update(line.keys)
    return dict(steps)


def samples_astray(
    ours: Mapping[int, Counter[str]], theirs: Mapping[int, Counter[str]]
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Uses that are missing, that are too many, and that are in another step."""
    none: Counter[str] = Counter()
    all_ours = sum(ours.values(), Counter[str]())
    all_theirs = sum(theirs.values(), Counter[str]())
    lost, doubled = all_theirs - all_ours, all_ours - all_theirs
    absent = sum((used - ours.get(step, none) for step, used in theirs.items()), Counter[str]())
    return lost, doubled, absent - lost


def uses_astray(
    steps: Sequence[Counter[str]], samples: set[str]
) -> tuple[Counter[str], Counter[str]]:
    """Samples an epoch has missed, and samples it has had twice; knows nothing of a reference.

    Where epochs follow each other without a gap (`data.last_batch=carry`), every sample has been
    used e or e + 1 times at any step's end, e being the epochs that are over by then; where an
    epoch ends with the step, e times.

    Args:
        steps: What each step has used, in order.
        samples: All there are.
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
    """Of each step the micro-batches with their losses, in an order that no rank decides."""
    steps: defaultdict[int, list[tuple[tuple[str, ...], float]]] = defaultdict(list)
    for line in lines:
        steps[line.step].append((line.keys, line.loss))
    return {step: sorted(batches) for step, batches in steps.items()}


def _worst_loss(
    ours: Mapping[int, list[tuple[tuple[str, ...], float]]],
    theirs: Mapping[int, list[tuple[tuple[str, ...], float]]],
) -> tuple[float, int]:
    """The greatest difference in a step that both have made, and in which.

    Micro-batch by micro-batch where both cut the step alike, else of the means over its samples.
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
    """The greatest difference of a number, and where; another name or shape differs by inf."""
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


def _told(what: str, keys: Counter[str]) -> list[str]:
    if not keys:
        return []
    named = sorted(keys)[:_TOLD]
    more = f" and {len(keys) - _TOLD} more" if len(keys) > _TOLD else ""
    return [f"{keys.total()} uses {what} {', '.join(named)}{more}"]


def _span(steps: Mapping[int, object]) -> str:
    missing = set(range(min(steps), max(steps) + 1)) - set(steps) if steps else set()
    gaps = f" without {sorted(missing)[:_TOLD]}" if missing else ""
    return f"{min(steps)} to {max(steps)}{gaps}" if steps else "none"
