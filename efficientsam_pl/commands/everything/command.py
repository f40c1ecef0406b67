"""`efficientsam everything`: segment everything in images; write pictures, records and shards."""

import json
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from efficientsam_pl.cluster.devices import Accelerator, chosen_device
from efficientsam_pl.commands.everything.labelled_shards import LabelledImage, write_labelled
from efficientsam_pl.data.images.files import images_in, read_image_file
from efficientsam_pl.data.images.stated import exif_line
from efficientsam_pl.errors import UserError
from efficientsam_pl.inference.automask.config import EverythingConfig
from efficientsam_pl.inference.automask.generator import generate_masks
from efficientsam_pl.inference.automask.records import MaskRecord
from efficientsam_pl.inference.hub import load_model
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.plural import counted
from efficientsam_pl.storage.atomic import atomic_write_bytes
from efficientsam_pl.visualization.automask import ListedMask, everything_overlay, everything_sheet


@dataclass(frozen=True)
class EverythingOptions:
    """Arguments of the command."""

    weights: str
    model: str | None
    image: Path
    out: Path
    json: Path | None
    shards: str | None
    accelerator: Accelerator
    config: EverythingConfig


@dataclass
class EverythingSummary:
    """Counts of a run; `skipped` holds the reason for each skipped image."""

    images: int = 0
    masks: int = 0
    passed_over: str | None = None  # of the folder, what is no image
    turns: Counter[str] = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)
    without_masks: list[str] = field(default_factory=list)


def run(options: EverythingOptions) -> EverythingSummary:
    """Write pictures of each image, and records and shards if requested.

    Raises:
        UserError: A wrong path, weights of another model, or no readable image.
    """
    summary = EverythingSummary()
    images = _images(options.image, summary)
    _check_outputs(options)
    model = load_model(options.model, options.weights).to(
        chosen_device(options.accelerator, "--accelerator")
    )
    start = time.perf_counter()
    columns = (TextColumn("Segmenting"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("", total=len(images))
        labelled = _label(
            images, model, options, summary, lambda share: progress.advance(task, share)
        )
        if options.shards is None:
            deque(labelled, maxlen=0)
        else:
            write_labelled(labelled, options.shards)
    if not summary.images:
        raise UserError(f"--image: no image of {options.image} can be read ({summary.skipped[0]})")
    _print_summary(summary, options, time.perf_counter() - start)
    return summary


def _label(
    images: dict[str, Path],
    model: Segmenter,
    options: EverythingOptions,
    summary: EverythingSummary,
    advance: Callable[[float], None],
) -> Iterator[LabelledImage]:
    """Yield each image with its masks after its pictures and records are written."""
    for key, path in images.items():
        try:
            file = read_image_file(path)
        except UserError as error:
            if options.image.is_file():
                raise
            summary.skipped.append(str(error).removeprefix("--image: "))
            advance(1)
            continue
        image, keeps_bytes = file.pixels, file.turn is None
        records = generate_masks(model, image, options.config, advance)
        _write(key, image, records, options)
        if file.turn is not None:
            summary.turns[file.turn] += 1
        summary.images += 1
        summary.masks += len(records)
        if any(record["area"] for record in records):
            yield LabelledImage(key, path if keeps_bytes else None, image, records)
        else:
            summary.without_masks.append(path.name)


def _write(
    key: str,
    image: UInt8[np.ndarray, "h w 3"],
    records: list[MaskRecord],
    options: EverythingOptions,
) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    masks = [
        ListedMask(record["segmentation"], record["predicted_iou"], record["stability_score"])
        for record in records
    ]
    everything_overlay(image, masks).save(options.out / f"{key}_overlay.png")
    everything_sheet(image, masks, key).save(options.out / f"{key}_masks.png")
    if options.json is not None:
        single_image = options.image.is_file()
        file = options.json if single_image else options.json / f"{key}.json"
        atomic_write_bytes(file, json.dumps(records, allow_nan=False).encode() + b"\n")


def _print_summary(summary: EverythingSummary, options: EverythingOptions, seconds: float) -> None:
    for line in (summary.passed_over, exif_line(summary.turns)):
        if line is not None:
            print(line)
    for reason in summary.skipped:
        print(f"skipped {reason}")
    skipped = f", {len(summary.skipped)} skipped" if summary.skipped else ""
    without = len(summary.without_masks)
    if without:
        names = ", ".join(summary.without_masks[:5]) + (", ..." if without > 5 else "")
        left_out = ", left out of the shards" if options.shards is not None else ""
        print(f"no mask was kept in {counted(without, 'image')}{left_out}: {names}")
    print(
        f"{counted(summary.images, 'image')}{skipped}, {counted(summary.masks, 'mask')}, "
        f"{seconds:.1f} s, "
        f"{seconds / summary.images:.1f} s per image -> {options.out}"
    )
    for output in (options.json, options.shards):
        if output is not None:
            print(f"-> {output}")


def _images(image: Path, summary: EverythingSummary) -> dict[str, Path]:
    """Map the names of the outputs to the images: unique stems without dots."""
    if image.is_file():
        return {_key(image.stem): image}
    listing = images_in(image)
    summary.passed_over = listing.skipped_line()
    paths = [image / name for name in listing.images]
    images: dict[str, Path] = {}
    for path in paths:
        names = (path.stem, path.name, *(f"{path.name}_{i}" for i in range(2, len(paths) + 2)))
        key = next(_key(name) for name in names if _key(name) not in images)
        images[key] = path
    return images


def _key(name: str) -> str:
    return name.replace(".", "_")  # in a shard a key ends at its first dot


def _check_outputs(options: EverythingOptions) -> None:
    if options.json is None:
        return
    if options.image.is_dir() and options.json.is_file():
        raise UserError(
            f"--json: {options.json} is a file, but --image is a folder: give a folder for its "
            "images' records"
        )
    if options.image.is_file() and options.json.is_dir():
        raise UserError(
            f"--json: {options.json} is a folder, but --image is a single image: give a file"
        )
