"""A packing run on the console: its progress, its summary file and what it skipped."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from efficientsam_pl.data.packing.runner import ArrayShare, Source, run_packing
from efficientsam_pl.data.packing.writer import PackSummary, Skipped
from efficientsam_pl.errors import UserError
from efficientsam_pl.plural import counted
from efficientsam_pl.storage.files import atomic_write

_PRINTED = 20  # skipped samples that are printed; all of them are in the summary file


def pack_source(source: Source, out: str, share: ArrayShare, workers: int) -> PackSummary:
    """Writes a share of a source's shards into the folder `out`, shows how far it is, and accounts.

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
        )
    written = account_for(summary, out, share, "packed")
    print(f"{counted(summary.samples, 'photo')}, {counted(summary.masks, 'mask')}, {written}")
    return summary


def account_for(
    summary: PackSummary,
    out: str,
    share: ArrayShare,
    done: str,
    more: Mapping[str, Any] | None = None,
) -> str:
    """Writes the summary of a share, prints what was skipped, and says what lies in `out` now.

    Args:
        summary: Of the share.
        out: The folder.
        share: Of the work.
        done: What was done to photos, for the error.
        more: What else the summary file tells.

    Raises:
        UserError: Every photo was skipped.
    """
    _print_skipped(summary.skipped, _write_summary(summary, out, share, more or {}))
    if not summary.samples and summary.skipped:
        first = summary.skipped[0]
        raise UserError(f"nothing could be {done} ({first.what}: {first.why})")
    before = f" ({summary.done_before} of them there before)" if summary.done_before else ""
    return (
        f"{len(summary.skipped)} skipped -> {counted(len(summary.shards), 'shard')}{before} of "
        f"{summary.bytes / 2**20:.1f} MiB in {out}"
    )


def _write_summary(
    summary: PackSummary, out: str, share: ArrayShare, more: Mapping[str, Any]
) -> str:
    """Writes what a share of the work has given; where it lies."""
    whole = {
        "array": {"index": share.index, "count": share.count},
        "samples": summary.samples,
        "masks": summary.masks,
        "bytes": summary.bytes,
        "shards": len(summary.shards),
        "done_before": summary.done_before,
        **more,
        "skipped": [vars(skipped) for skipped in summary.skipped],
    }
    of = "" if share.count == 1 else f"-{share.index}-of-{share.count}"
    place = f"{out}/pack-summary{of}.json"
    with atomic_write(place) as target:
        target.write(json.dumps(whole, indent=1).encode() + b"\n")
    return place


def _print_skipped(skipped: Sequence[Skipped], report: str) -> None:
    """Prints the first of what was skipped, and where all of it is listed."""
    for one in skipped[:_PRINTED]:
        print(f"skipped {one.what}: {one.why}")
    if len(skipped) > _PRINTED:
        print(f"... and {len(skipped) - _PRINTED} more, see {report}")
