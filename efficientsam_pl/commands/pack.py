"""`efficientsam pack`: convert a set of images, with or without masks, to WebDataset shards."""

import os
from dataclasses import dataclass, field

from efficientsam_pl.data.coco.annotations import Crowds
from efficientsam_pl.data.images.stated import ExifOrientation
from efficientsam_pl.data.packing.coco import Coco
from efficientsam_pl.data.packing.imagenet import Imagenet
from efficientsam_pl.data.packing.label_classes import read_label_classes
from efficientsam_pl.data.packing.label_maps import CLASS_IMAGES, LabelMaps, PairSettings
from efficientsam_pl.data.packing.report import pack_source
from efficientsam_pl.data.packing.runner import ArrayShare, PackAgain
from efficientsam_pl.data.packing.sa1b import Sa1b
from efficientsam_pl.data.packing.writer import PackSummary
from efficientsam_pl.errors import UserError

_CLASSES_NAMED = 5  # of those in no image


@dataclass(frozen=True)
class LabelMapFolders:
    """The two folders of a set of label maps, its class list and the values of its maps."""

    images: str
    labels: str
    classes: str
    first_class: int | None = None
    ignored: tuple[int, ...] = ()
    exif_orientation: ExifOrientation = "apply"


@dataclass(frozen=True)
class PackOptions:
    """Arguments common to all sources."""

    out: str
    long_side: int | None
    samples_per_shard: int
    share: ArrayShare
    workers: int
    again: PackAgain = field(default_factory=PackAgain)


def slurm_share() -> ArrayShare:
    """Return the share of this job of a SLURM array; outside of an array, all of the work."""
    if "SLURM_ARRAY_TASK_ID" not in os.environ:
        return ArrayShare()
    variables = {
        name: os.environ.get(f"SLURM_ARRAY_TASK_{name}", default)
        for name, default in (("ID", ""), ("COUNT", ""), ("MIN", "0"), ("STEP", "1"))
    }
    try:
        task, count, first, step = map(int, variables.values())
        index, remainder = divmod(task - first, step)
        if remainder or not 0 <= index < count:
            raise ValueError
    except (ValueError, ZeroDivisionError) as error:
        numbers = ", ".join(f"{name} {value or 'not set'}" for name, value in variables.items())
        raise UserError(
            f"the SLURM array has gaps or lacks a number ({numbers}); "
            "give --array-index and --array-count"
        ) from error
    return ArrayShare(index, count)


def run_coco(
    annotations: str,
    images: str,
    options: PackOptions,
    exif_orientation: ExifOrientation = "apply",
    crowds: Crowds = "ignore",
) -> PackSummary:
    """Pack a COCO-format set."""
    source = Coco(
        annotations,
        images,
        options.long_side,
        options.samples_per_shard,
        exif_orientation=exif_orientation,
        crowds=crowds,
    )
    for line in source.findings():
        print(line)
    return pack_source(source, options.out, options.share, options.workers, options.again)


def run_sa1b(pattern: str, options: PackOptions) -> PackSummary:
    """Repack Meta's tars."""
    source = Sa1b(pattern, options.long_side, options.samples_per_shard)
    return pack_source(source, options.out, options.share, options.workers, options.again)


def run_imagenet(source: str, options: PackOptions) -> PackSummary:
    """Pack images without masks."""
    images = Imagenet(source, options.long_side, options.samples_per_shard)
    left_out = images.inventory().left_out(named=True)
    if left_out is not None:
        print(left_out)
    return pack_source(images, options.out, options.share, options.workers, options.again)


def run_label_maps(folders: LabelMapFolders, options: PackOptions) -> PackSummary:
    """Pack images with label maps."""
    classes = read_label_classes(folders.classes, folders.first_class, folders.ignored)
    settings = PairSettings(classes, options.long_side, folders.exif_orientation)
    source = LabelMaps(folders.images, folders.labels, settings, options.samples_per_shard)
    left_out = source.inventory().left_out(named=True)
    if left_out is not None:
        print(left_out)
    summary = pack_source(source, options.out, options.share, options.workers, options.again)
    counts = [note[CLASS_IMAGES] for note in summary.notes if CLASS_IMAGES in note]
    unseen = [name for name, *images in zip(classes.names, *counts, strict=True) if not any(images)]
    if unseen and options.share.count == 1:
        more = ", ..." if len(unseen) > _CLASSES_NAMED else ""
        print(
            f"in no image: {len(unseen)} of {len(classes.names)} classes: "
            f"{', '.join(unseen[:_CLASSES_NAMED])}{more}"
        )
    return summary
