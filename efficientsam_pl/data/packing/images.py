"""Photos with masks as samples: encoded, and shrunk together with their run lengths."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import UInt8

from efficientsam_pl.data.packing.writer import PackedSample, PackSummary, write_shard
from efficientsam_pl.data.schema import Annotation, Record, to_json
from efficientsam_pl.data.shards import write_manifest
from efficientsam_pl.mask_coverage import Grid, half_covered_runs
from efficientsam_pl.rle import from_runs, run_lengths
from efficientsam_pl.storage.files import full_path

JPEG_QUALITY = 92  # of photos that are encoded anew, without colour subsampling


@dataclass(frozen=True)
class MaskedImage:
    """A photo with its masks at the photo's size."""

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    annotations: tuple[Annotation, ...]
    original_hw: tuple[int, int] | None = None  # before it was first shrunk, if it was


def limit_side(photo: MaskedImage, longest: int) -> MaskedImage:
    """The photo and its masks scaled down together so that no side exceeds `longest` pixels.

    The photo is resized bicubically with antialiasing; of a mask stay the pixels that it covers
    by half, and of one too thin for that its best-covered ones.
    """
    image_hw = (photo.image.shape[0], photo.image.shape[1])
    small = smaller(image_hw, longest)
    if small == image_hw:
        return photo
    return MaskedImage(
        photo.key,
        shrunk_image(photo.image, small),
        shrunk_masks(photo.annotations, image_hw, small),
        photo.original_hw or image_hw,
    )


def smaller(image_hw: tuple[int, int], longest: int) -> tuple[int, int]:
    """Height and width with the longer side at most `longest` pixels."""
    scale = min(1, longest / max(image_hw))
    return max(1, round(image_hw[0] * scale)), max(1, round(image_hw[1] * scale))


def shrunk_image(
    image: UInt8[np.ndarray, "h w 3"], to_hw: tuple[int, int]
) -> UInt8[np.ndarray, "nh nw 3"]:
    """Bicubic with antialiasing."""
    pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    resized = F.interpolate(pixels, to_hw, mode="bicubic", antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def shrunk_masks(
    annotations: Iterable[Annotation], image_hw: tuple[int, int], to_hw: tuple[int, int]
) -> tuple[Annotation, ...]:
    """Run lengths for the smaller photo, from the run lengths; empty masks are left out.

    Raises:
        ValueError: Runs that do not add up to the photo's size.
    """
    real = [a for a in annotations if a.area > 0]
    runs = run_lengths([a.rle for a in real])
    small = half_covered_runs(runs, Grid.over(image_hw, to_hw))
    return tuple(
        Annotation(
            rle=from_runs(own, *to_hw),
            area=int(own[1::2].sum()),
            crowd=annotation.crowd,
            predicted_iou=annotation.predicted_iou,
            stability=annotation.stability,
        )
        for annotation, own in zip(real, small, strict=True)
        if own[1::2].any()
    )


def encoded(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """A JPEG of quality 92 without colour subsampling."""
    pixels = np.ascontiguousarray(image)
    data: bytes = simplejpeg.encode_jpeg(pixels, JPEG_QUALITY, "RGB", "444")
    return data


def sample_of(photo: MaskedImage, jpeg: bytes | None = None) -> PackedSample:
    """The files of a masked image; `jpeg` where the photo need not be encoded anew."""
    height, width = photo.image.shape[:2]
    record = Record(width, height, photo.annotations, photo.original_hw)
    files = {
        "jpg": encoded(photo.image) if jpeg is None else jpeg,
        "json": to_json(f"{photo.key}.jpg", record),
    }
    return PackedSample(photo.key, files, len(photo.annotations))


def pack_images(
    photos: Iterable[MaskedImage], folder: Path, prefix: str, samples_per_shard: int = 1000
) -> PackSummary:
    """Writes photos that are at hand into `FOLDER/PREFIX-000000.tar`..."""
    out, summary = full_path(str(folder)), PackSummary()
    waiting: list[PackedSample] = []

    def write() -> None:
        path = f"{out}/{prefix}-{len(summary.shards):06d}.tar"
        shard, packed = write_shard(path, waiting)
        if shard is not None:
            summary.add(shard, packed, done_before=False)
        waiting.clear()

    for photo in photos:
        waiting.append(sample_of(photo))
        if len(waiting) == samples_per_shard:
            write()
    write()
    write_manifest(out, summary.shards)
    return summary
