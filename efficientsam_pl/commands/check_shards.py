"""`efficientsam check-shards`: whether every sample of a set can be used."""

import json
import sys
from collections import Counter
from pathlib import Path

from rich.progress import track

from efficientsam_pl.data.shard_checks import CheckedShard, check_shards
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.plural import counted
from efficientsam_pl.storage.files import atomic_write
from efficientsam_pl.structures import CorruptSample

_TOLD = 20  # of the list; all of it is in the report
REPORT_VERSION = 1


def run(pattern: str, report: Path | None, index_dir: str | None, workers: int) -> bool:
    """Checks a set, prints what is wrong, writes the report; whether nothing is."""
    shards = open_shards(pattern, index_dir)
    checked = list(
        track(
            check_shards(shards, workers),
            "Checking",
            len(shards.shards),
            transient=True,
            disable=not sys.stdout.isatty(),
        )
    )
    bad = [damage for shard in sorted(checked, key=lambda c: c.shard) for damage in shard.bad]
    if report is not None:
        _write(report, checked, bad)
    for damage in bad[:_TOLD]:
        where = f"{damage.shard} {damage.key}".rstrip()
        print(f"{where}: {damage.kind} ({damage.detail})")
    if len(bad) > _TOLD:
        rest = f", all of them in {report}" if report else "; --json FILE lists them"
        print(f"... and {len(bad) - _TOLD} more{rest}")
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(d.kind for d in bad).items()))
    samples = sum(shard.samples for shard in checked)
    counts = f"{counted(len(checked), 'shard')}, {counted(samples, 'sample')}"
    print(f"{counts}, {len(bad)} bad{f': {kinds}' if bad else ''}")
    return not bad


def _write(path: Path, checked: list[CheckedShard], bad: list[CorruptSample]) -> None:
    whole = {
        "version": REPORT_VERSION,
        "shards": len(checked),
        "samples": sum(shard.samples for shard in checked),
        "bad": [vars(damage) for damage in bad],
    }
    with atomic_write(str(path)) as target:
        target.write(json.dumps(whole, indent=1).encode() + b"\n")
