"""Reasons why an image of a COCO-format set has no object to train on."""

from collections.abc import Iterable

from efficientsam_pl.data.coco.findings import NO_MASK
from efficientsam_pl.data.packing.coco import CocoEntry
from efficientsam_pl.plural import counted

_CROWDS = "it has no mask but of crowds, which data.coco.crowds=objects takes"


def reason_against(entry: CocoEntry) -> str | None:
    """Return why an image is left out; None where it can be trained on, as far as the file says."""
    if any(not annotation.crowd for annotation in entry.annotations):
        return None if entry.exists else "no such file"
    if entry.annotations:
        return _CROWDS
    if entry.lost == {NO_MASK}:
        return "it has no mask: its annotations have boxes at most"
    if entry.lost:
        return "it has no mask that can be used"
    return "it has no mask: no annotation"


def count_reasons(entries: Iterable[CocoEntry]) -> str:
    """Count the images that are left out by reason, each with an example."""
    paths: dict[str, list[str]] = {}
    for entry in entries:
        reason = reason_against(entry)
        if reason is not None:
            paths.setdefault(reason, []).append(entry.path)
    return "; ".join(
        f"{counted(len(examples), 'image')}, such as {examples[0]}: {reason}"
        for reason, examples in paths.items()
    )
