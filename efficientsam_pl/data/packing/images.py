"""Encode masked images as samples; shrink images together with their masks' run lengths."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import simplejpeg
from jaxtyping import UInt8

from efficientsam_pl.data.images.orientation import is_jpeg, without_orientation
from efficientsam_pl.data.images.stated import ExifTurn
from efficientsam_pl.data.manifest import write_manifest
from efficientsam_pl.data.packing.writer import PackedSample, PackSummary, write_shard
from efficientsam_pl.data.schema import Annotation, Record, to_json
from efficientsam_pl.mask_coverage import Grid, half_covered_runs
from efficientsam_pl.rle import from_runs, run_lengths
from efficientsam_pl.storage.files import full_path

JPEG_QUALITY = 92  # of images that are encoded again, without colour subsampling


@dataclass(frozen=True)
class MaskedImage:
    """An image with its masks at the image's size."""

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    annotations: tuple[Annotation, ...]
    original_hw: tuple[int, int] | None = None  # before it was first shrunk, if it was
    turn: ExifTurn = None


def limit_side(image: MaskedImage, longest: int) -> MaskedImage:
    """Scale an image and its masks down together so that no side exceeds `longest` pixels.

    The image is resized bicubically with antialiasing; a mask keeps the pixels that it covers by
    half, and one too thin for that its best-covered pixels.
    """
    image_hw = (image.image.shape[0], image.image.shape[1])
    small = limited_size(image_hw, longest)
    if small == image_hw:
        return image
    return replace(
        image,
        image=shrink_image(image.image, small),
        annotations=shrink_masks(image.annotations, image_hw, small),
        original_hw=image.original_hw or image_hw,
    )


def limited_size(image_hw: tuple[int, int], longest: int) -> tuple[int, int]:
    """Return height and width with the longer side at most `longest` pixels."""
    scale = min(1, longest / max(image_hw))
    return max(1, round(image_hw[0] * scale)), max(1, round(image_hw[1] * scale))


def shrink_image(
    image: UInt8[np.ndarray, "h w 3"], to_hw: tuple[int, int]
) -> UInt8[np.ndarray, "nh nw 3"]:
    """Resize bicubically with antialiasing."""
    import torch  # packing without resizing needs none of it
    import torch.nn.functional as F  # noqa: N812

    pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    resized = F.interpolate(pixels, to_hw, mode="bicubic", antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def shrink_masks(
    annotations: Iterable[Annotation], image_hw: tuple[int, int], to_hw: tuple[int, int]
) -> tuple[Annotation, ...]:
    """Compute run lengths for the smaller image from run lengths; empty masks are left out.

    Raises:
        ValueError: Runs that do not add up to the image's size.
    """
    real = [a for a in annotations if a.area > 0]
    runs = run_lengths([a.rle for a in real])
    small = half_covered_runs(runs, Grid.over(image_hw, to_hw))
    return tuple(
        Annotation(
            rle=from_runs(counts, *to_hw),
            area=int(counts[1::2].sum()),
            crowd=annotation.crowd,
            predicted_iou=annotation.predicted_iou,
            stability=annotation.stability,
            category_id=annotation.category_id,
        )
        for annotation, counts in zip(real, small, strict=True)
        if counts[1::2].any()
    )


def encode_jpeg(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encode a JPEG of quality 92 without colour subsampling."""
    pixels = np.ascontiguousarray(image)
    data: bytes = simplejpeg.encode_jpeg(pixels, JPEG_QUALITY, "RGB", "444")
    return data


def stored_jpeg(data: bytes, turn: ExifTurn) -> bytes | None:
    """Return the bytes to keep of a JPEG that is not shrunk; None: encode its pixels.

    A shard holds upright pixels without an orientation: a turned image is encoded again, of one
    that is read as stored only the orientation is removed.
    """
    if turn == "turned" or not is_jpeg(data):
        return None
    return data if turn is None else without_orientation(data)


def packed_sample(image: MaskedImage, jpeg: bytes | None = None) -> PackedSample:
    """Build the files of a masked image; `jpeg` are its stored bytes, None: encode it."""
    height, width = image.image.shape[:2]
    record = Record(width, height, image.annotations, image.original_hw)
    files = {
        "jpg": encode_jpeg(image.image) if jpeg is None else jpeg,
        "json": to_json(f"{image.key}.jpg", record),
    }
    return PackedSample(image.key, files, len(image.annotations), image.turn)


def pack_images(
    images: Iterable[MaskedImage], folder: Path, prefix: str, samples_per_shard: int = 1000
) -> PackSummary:
    """Write images in memory into `FOLDER/PREFIX-000000.tar`..."""
    out, summary = full_path(str(folder)), PackSummary()
    waiting: list[PackedSample] = []

    def write() -> None:
        path = f"{out}/{prefix}-{len(summary.shards):06d}.tar"
        shard, packed = write_shard(path, waiting)
        if shard is not None:
            summary.add(shard, packed, done_before=False)
        waiting.clear()

    for image in images:
        waiting.append(packed_sample(image))
        if len(waiting) == samples_per_shard:
            write()
    write()
    write_manifest(out, summary.shards)
    return summary
