"""`efficientsam pack`: a set of photos and masks to WebDataset shards."""

import sys
from pathlib import Path

from rich.progress import track

from efficientsam_pl.data.coco import coco_photos, read_coco
from efficientsam_pl.data.writer import PackSummary, limit_side, pack
from efficientsam_pl.errors import UserError


def run_coco(
    annotations: Path, images: Path, out: Path, long_side: int | None, prefix: str = "coco"
) -> PackSummary:
    """Packs a COCO-format set; what cannot be read is named and counted."""
    entries = read_coco(annotations, images)
    skipped: list[str] = []
    photos = coco_photos(
        track(entries, "Packing", transient=True, disable=not sys.stdout.isatty()), skipped
    )
    if long_side is not None:
        photos = (limit_side(photo, long_side) for photo in photos)
    summary = pack(photos, out, prefix)
    summary.skipped = tuple(skipped)
    if not summary.photos:
        why = skipped[0] if skipped else "it lists none"
        raise UserError(f"no photo of {annotations} could be packed ({why})")
    for line in skipped:
        print(f"skipped {line}")
    print(
        f"{summary.photos} photos, {summary.masks} masks, {len(skipped)} skipped -> "
        f"{summary.shards} shards of {summary.bytes / 2**20:.1f} MiB in {out}"
    )
    return summary
