"""`efficientsam pack`: a set of photos, with or without masks, to WebDataset shards."""

import os
from dataclasses import dataclass

from efficientsam_pl.data.packing.coco import Coco
from efficientsam_pl.data.packing.imagenet import Imagenet
from efficientsam_pl.data.packing.report import pack_source
from efficientsam_pl.data.packing.runner import ArrayShare
from efficientsam_pl.data.packing.sa1b import Sa1b
from efficientsam_pl.data.packing.writer import PackSummary
from efficientsam_pl.errors import UserError


@dataclass(frozen=True)
class PackOptions:
    """What all sources are told."""

    out: str
    long_side: int | None
    samples_per_shard: int
    share: ArrayShare
    workers: int


def slurm_share() -> ArrayShare:
    """The share of this job of a SLURM array; all of the work outside of one."""
    if "SLURM_ARRAY_TASK_ID" not in os.environ:
        return ArrayShare()
    given = {
        name: os.environ.get(f"SLURM_ARRAY_TASK_{name}", default)
        for name, default in (("ID", ""), ("COUNT", ""), ("MIN", "0"), ("STEP", "1"))
    }
    try:
        task, count, first, step = map(int, given.values())
        index, apart = divmod(task - first, step)
        if apart or not 0 <= index < count:
            raise ValueError
    except (ValueError, ZeroDivisionError) as error:
        told = ", ".join(f"{name} {value or 'not set'}" for name, value in given.items())
        raise UserError(
            f"the SLURM array has gaps or lacks a number ({told}); "
            "give --array-index and --array-count"
        ) from error
    return ArrayShare(index, count)


def run_coco(annotations: str, images: str, options: PackOptions) -> PackSummary:
    """Packs a COCO-format set."""
    source = Coco(annotations, images, options.long_side, options.samples_per_shard)
    return pack_source(source, options.out, options.share, options.workers)


def run_sa1b(pattern: str, options: PackOptions) -> PackSummary:
    """Packs Meta's tars again."""
    source = Sa1b(pattern, options.long_side, options.samples_per_shard)
    return pack_source(source, options.out, options.share, options.workers)


def run_imagenet(source: str, options: PackOptions) -> PackSummary:
    """Packs plain photos."""
    photos = Imagenet(source, options.long_side, options.samples_per_shard)
    return pack_source(photos, options.out, options.share, options.workers)
