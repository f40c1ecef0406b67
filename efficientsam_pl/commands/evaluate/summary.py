"""The last line of an evaluation, and the error where there is nothing to score."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.results.result_file import Result
from efficientsam_pl.plural import counted


def summary(result: Result) -> str:
    """Summarize the result in a sentence."""
    counts = result.counts
    message = (
        f"{counted(counts['photos'], 'photo')}, {counted(counts['instances'], 'instance')} "
        f"({_skipped(result)} skipped), {len(result.damaged)} damaged{_in_brackets(_kinds(result))}"
    )
    if "detections" in result.data:
        message += f"; {_detections(result)}"
    return f"{message}: " + ", ".join(_text(name, n) for name, n in result.numbers.items())


def check_scored(result: Result, dataset: str) -> None:
    """Refuse a result without a number.

    Raises:
        UserError: No image could be read, or none has anything to score; says why.
    """
    if any(_has_number(numbers) for numbers in result.numbers.values()):
        return
    reasons = f": {kinds}" if (kinds := _kinds(result)) else ""
    photos = result.counts["photos"]
    if not photos:
        raise UserError(f"nothing to score in {dataset}: no image can be used{reasons}")
    raise UserError(
        f"nothing to score in {dataset}: {counted(photos, 'photo')} without an instance that "
        f"counts ({_skipped(result)} skipped){reasons}{_crowds_hint(result)}"
    )


def _crowds_hint(result: Result) -> str:
    """Name the key that takes crowds as objects, where it can help."""
    if result.data["kind"] == "coco" and result.counts["skipped_crowds"]:
        return "; crowds=objects scores crowds"
    return ""


def _has_number(numbers: Mapping[str, Any]) -> bool:
    miou, ap = numbers.get("miou", {}).get("all"), numbers.get("ap", {}).get("ap", -1.0)
    return miou is not None or ap >= 0  # AP of nothing is -1


def _skipped(result: Result) -> str:
    crowds, empty = (result.counts[f"skipped_{kind}"] for kind in ("crowds", "empty"))
    return f"{counted(crowds, 'crowd')} and {counted(empty, 'empty one')}"


def _kinds(result: Result) -> str:
    """Count the corrupt entries by kind, each with an example."""
    names: dict[str, list[str]] = defaultdict(list)
    for sample in result.damaged:
        names[sample["kind"]].append(sample["photo"])
    return ", ".join(
        f"{kind}: {len(of_kind)}, such as {of_kind[0]}" for kind, of_kind in names.items()
    )


def _detections(result: Result) -> str:
    """Count the detections that do not count as they are, by reason."""
    counts: dict[str, Any] = result.data["detections"]
    left_out, unusable = counts["left_out"], counts["unusable"]
    return (
        f"{counted(result.counts['detections'], 'detection')} ({sum(left_out.values())} left out"
        f"{_in_brackets(_reasons(left_out.items()))}, {counts['clipped']} clipped, "
        f"{sum(unusable.values())} unusable{_in_brackets(_reasons(unusable.items()))})"
    )


def _reasons(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in counts)


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def _text(name: str, numbers: Mapping[str, Any]) -> str:
    ap = f"{name} AP {numbers['ap']['ap']:.4f}" if "ap" in numbers else ""
    if "miou" not in numbers:
        return ap
    text = f"{name} mIoU {_format(numbers['miou']['all'])}"
    if "filled_box_miou" in numbers:
        text += f" (filling the box {_format(numbers['filled_box_miou']['all'])})"
    return f"{text}, {ap}" if ap else text


def _format(value: float | None) -> str:
    return "of nothing" if value is None else f"{value:.4f}"
