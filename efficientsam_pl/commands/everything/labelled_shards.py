"""Write images with the masks of a model as shards in SA-1B's layout."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from efficientsam_pl.data.manifest import write_manifest
from efficientsam_pl.data.packing.images import MaskedImage, packed_sample
from efficientsam_pl.data.packing.writer import PackedSample, PackSummary, write_shard
from efficientsam_pl.data.schema import RECORD_SUFFIX, Annotation
from efficientsam_pl.errors import UserError
from efficientsam_pl.inference.automask.records import MaskRecord
from efficientsam_pl.storage.files import full_path, list_files

_PREFIX, _IMAGES_PER_SHARD = "everything", 1000


@dataclass(frozen=True)
class LabelledImage:
    """An image with its masks, and its file; None where the file's pixels were turned."""

    key: str
    path: Path | None
    image: UInt8[np.ndarray, "h w 3"]
    records: list[MaskRecord]


def write_labelled(images: Iterable[LabelledImage], folder: str) -> PackSummary:
    """Write `FOLDER/everything-000000.tar`..., image by image as they arrive.

    Raises:
        UserError: The folder holds shards already.
    """
    out, summary = full_path(folder), PackSummary()
    if list_files(f"{out}/*.tar"):
        raise UserError(f"--shards: {folder} holds shards already; give a new folder")
    samples = map(_sample, images)
    while True:
        path = f"{out}/{_PREFIX}-{len(summary.shards):06d}.tar"
        shard, packed = write_shard(path, islice(samples, _IMAGES_PER_SHARD))
        if shard is None:
            break
        summary.add(shard, packed, done_before=False)
    write_manifest(out, summary.shards)
    return summary


def _sample(image: LabelledImage) -> PackedSample:
    """Build a sample: a plain JPEG as it is, and masks with their prompts and crops."""
    records = [record for record in image.records if record["area"] > 0]
    annotations = tuple(
        Annotation(
            rle=record["segmentation"],
            area=record["area"],
            predicted_iou=record["predicted_iou"],
            stability=record["stability_score"],
        )
        for record in records
    )
    masked = MaskedImage(image.key, image.image, annotations)
    sample = packed_sample(masked, _stored_jpeg(image.path))
    whole = json.loads(sample.files[RECORD_SUFFIX])
    for entry, record in zip(whole["annotations"], records, strict=True):
        entry |= {"point_coords": record["point_coords"], "crop_box": record["crop_box"]}
    written = json.dumps(whole, separators=(",", ":")).encode()
    return PackedSample(sample.key, {**sample.files, RECORD_SUFFIX: written}, sample.masks)


def _stored_jpeg(path: Path | None) -> bytes | None:
    if path is None:
        return None
    with Image.open(path) as image:
        plain = image.format == "JPEG" and image.mode == "RGB"
    return path.read_bytes() if plain else None
