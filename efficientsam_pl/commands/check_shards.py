"""`efficientsam check-shards`: check that every sample of a set can be used."""

import json
import sys
from collections import Counter

from rich.progress import track

from efficientsam_pl.data.shard_checks import CheckedShard, check_shards
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.plural import counted
from efficientsam_pl.records import CorruptSample
from efficientsam_pl.storage.files import atomic_write

_MAX_PRINTED = 20  # bad samples; the report lists all
REPORT_VERSION = 1


def run(pattern: str, report: str | None, index_dir: str | None, workers: int) -> bool:
    """Check a set, print the errors and write the report; return whether all samples are good."""
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
    bad = [sample for shard in sorted(checked, key=lambda c: c.shard) for sample in shard.bad]
    if report is not None:
        _write(report, checked, bad)
    for sample in bad[:_MAX_PRINTED]:
        location = f"{sample.shard} {sample.key}".rstrip()
        print(f"{location}: {sample.kind} ({sample.detail})")
    if len(bad) > _MAX_PRINTED:
        rest = f", all of them in {report}" if report else "; --json FILE lists them"
        print(f"... and {len(bad) - _MAX_PRINTED} more{rest}")
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(s.kind for s in bad).items()))
    samples = sum(shard.samples for shard in checked)
    counts = f"{counted(len(checked), 'shard')}, {counted(samples, 'sample')}"
    print(f"{counts}, {len(bad)} bad{f': {kinds}' if bad else ''}")
    return not bad


def _write(path: str, checked: list[CheckedShard], bad: list[CorruptSample]) -> None:
    content = {
        "version": REPORT_VERSION,
        "shards": len(checked),
        "samples": sum(shard.samples for shard in checked),
        "bad": [vars(sample) for sample in bad],
    }
    with atomic_write(path) as target:
        target.write(json.dumps(content, indent=1).encode() + b"\n")
