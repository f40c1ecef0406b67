"""Report a packing run: progress on the console, the summary file and the skipped samples."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from efficientsam_pl.data.coco.categories import Category
from efficientsam_pl.data.images.files import printable
from efficientsam_pl.data.images.stated import exif_line
from efficientsam_pl.data.packing.coco import CATEGORIES
from efficientsam_pl.data.packing.inventory import Inventory
from efficientsam_pl.data.packing.runner import ArrayShare, PackAgain, Source, run_packing
from efficientsam_pl.data.packing.writer import PackSummary, Skipped
from efficientsam_pl.errors import UserError
from efficientsam_pl.plural import counted
from efficientsam_pl.storage.files import atomic_write

_MASK_COUNTS = {"crowds": "of crowds", "empty_masks": "empty"}  # see MaskCounts
_NAMED = 3  # categories that are printed
_IMAGE_COUNTS = {"ignored_images": "wholly ignored"}  # see label_maps
_PRINTED = 20  # skipped samples that are printed; all of them are in the summary file


@runtime_checkable
class Categorised(Protocol):
    """A source whose annotations have categories."""

    def categories(self) -> Sequence[Category]:
        """Return the categories by rising number; empty where the source has none."""


@runtime_checkable
class Inventoried(Protocol):
    """A source that knows what it leaves out."""

    def inventory(self) -> Inventory:
        """Return what is left out and the classes; complete when all units are made."""


def pack_source(
    source: Source, out: str, share: ArrayShare, workers: int, again: PackAgain | None = None
) -> PackSummary:
    """Write a share of a source's shards into the folder `out`, with a progress bar and a report.

    Raises:
        UserError: Nothing could be packed, or the folder holds something else.
    """
    columns = (TextColumn("Packing"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("", total=source.weight(share))
        summary = run_packing(
            source,
            out,
            share,
            workers,
            lambda weight: progress.advance(task, weight),
            again,
        )
    kinds = _MASK_COUNTS | _IMAGE_COUNTS
    others = {key: sum(note.get(key, 0) for note in summary.notes) for key in kinds}
    others = {key: count for key, count in others.items() if count}
    inventory = source.inventory() if isinstance(source, Inventoried) else Inventory()
    categories, told = _categories(source, summary)
    more = others | inventory.summary() | categories
    written = report_packing(summary, out, share, "packed", more)
    images = counted(summary.samples, "image") + _among(others, _IMAGE_COUNTS)
    masks = counted(summary.masks, "mask") + _among(others, _MASK_COUNTS)
    print(f"{images}, {masks}, {written}{inventory.closing()}{told}")
    return summary


def _categories(source: Source, summary: PackSummary) -> tuple[dict[str, Any], str]:
    """Return the summary's entry of a set's categories, and the end of the last line.

    There is none where an earlier version packed one of the shards, without categories.
    """
    listed = source.categories() if isinstance(source, Categorised) else ()
    if not listed:
        return {}, ""
    without = len(summary.shards) - sum(CATEGORIES in note for note in summary.notes)
    if without:
        shards = counted(without, "shard")
        return {}, f"; {shards} packed by an earlier version without categories (see --redo)"
    entries = [{"id": category.id, "name": category.name} for category in listed]
    names = ", ".join(printable(category.name) for category in listed[:_NAMED])
    count = "1 category" if len(listed) == 1 else f"{len(listed)} categories"
    more = ", ..." if len(listed) > _NAMED else ""
    return {CATEGORIES: entries}, f"; {count}: {names}{more}"


def _among(counts: Mapping[str, int], names: Mapping[str, str]) -> str:
    """Format the special ones among images or masks in brackets; "" where there are none."""
    parts = [f"{counts[key]} {name}" for key, name in names.items() if key in counts]
    return f" ({', '.join(parts)})" if parts else ""


def report_packing(
    summary: PackSummary,
    out: str,
    share: ArrayShare,
    done: str,
    more: Mapping[str, Any] | None = None,
) -> str:
    """Write the summary of a share, print the skipped samples, and describe the shards in `out`.

    Args:
        summary: Summary of the share.
        out: The folder.
        share: Share of the work.
        done: Participle for the error, such as "packed".
        more: Further entries of the summary file.

    Raises:
        UserError: Every image was skipped.
    """
    _print_skipped(summary.skipped, _write_summary(summary, out, share, more or {}))
    if not summary.samples and summary.skipped:
        first = summary.skipped[0]
        raise UserError(f"nothing could be {done} ({first.what}: {first.why})")
    rotated = exif_line(summary.turns)
    if rotated is not None:
        print(rotated)
    if summary.unrecorded:
        print(
            f"{counted(summary.unrecorded, 'shard')} packed by an earlier version without a record "
            "of the sources: taken as is (--redo packs a shard again)"
        )
    counts = [f"{summary.done_before} of them existed before"] if summary.done_before else []
    counts += [f"{summary.repacked} packed again"] if summary.repacked else []
    before = f" ({', '.join(counts)})" if counts else ""
    return (
        f"{len(summary.skipped)} skipped -> {counted(len(summary.shards), 'shard')}{before} of "
        f"{summary.bytes / 2**20:.1f} MiB in {out}"
    )


def _write_summary(
    summary: PackSummary, out: str, share: ArrayShare, more: Mapping[str, Any]
) -> str:
    """Write the summary file of a share; return its path."""
    whole = {
        "array": {"index": share.index, "count": share.count},
        "samples": summary.samples,
        "masks": summary.masks,
        "bytes": summary.bytes,
        "shards": len(summary.shards),
        "done_before": summary.done_before,
        "repacked": summary.repacked,
        **({"exif_turns": dict(summary.turns)} if summary.turns else {}),
        **more,
        "skipped": [vars(skipped) for skipped in summary.skipped],
    }
    of = "" if share.count == 1 else f"-{share.index}-of-{share.count}"
    place = f"{out}/pack-summary{of}.json"
    with atomic_write(place) as target:
        target.write(json.dumps(whole, indent=1).encode() + b"\n")
    return place


def _print_skipped(skipped: Sequence[Skipped], report: str) -> None:
    """Print the first skipped samples, and the file that lists all of them."""
    for item in skipped[:_PRINTED]:
        print(f"skipped {item.what}: {item.why}")
    if len(skipped) > _PRINTED:
        print(f"... and {len(skipped) - _PRINTED} more, see {report}")
