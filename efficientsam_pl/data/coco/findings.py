"""Findings about an annotation file: entries that cannot be used, and repairs."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from efficientsam_pl.records import CorruptSample

MISSING_IMAGE = "missing photo"
NO_MASK = "annotation without a mask"
UNUSABLE = "annotation that cannot be used"


@dataclass
class Findings:
    """Findings in the file's order.

    `corrupt` entries are left out. `notices` are repairs that lost nothing: renumbered ids,
    merged records, dropped polygon pieces.
    """

    path: str
    corrupt: list[CorruptSample] = field(default_factory=list)
    notices: list[CorruptSample] = field(default_factory=list)

    def reject(self, key: str, kind: str, detail: str = "") -> None:
        """Record an entry that cannot be used."""
        self.corrupt.append(CorruptSample(self.path, key, kind, detail))

    def note(self, key: str, kind: str, detail: str = "") -> None:
        """Record a repair."""
        self.notices.append(CorruptSample(self.path, key, kind, detail))


def count_lines(samples: Iterable[CorruptSample]) -> list[str]:
    """Count findings by kind, one line each with the first as an example."""
    by_kind: dict[str, list[CorruptSample]] = {}
    for sample in samples:
        by_kind.setdefault(sample.kind, []).append(sample)
    lines = []
    for kind, group in by_kind.items():
        detail = f" ({group[0].detail})" if group[0].detail else ""
        lines.append(f"{kind}: {len(group)}, such as {group[0].key}{detail}")
    return lines
