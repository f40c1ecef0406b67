"""`efficientsam everything`: masks of everything in photos, as pictures, records and shards."""

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from efficientsam_pl.cluster.devices import Accelerator, chosen_device
from efficientsam_pl.commands.everything.labelled_shards import LabelledImage, write_labelled
from efficientsam_pl.data.image_files import images_in, read_image
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
    """What the command line says."""

    weights: str
    model: str | None
    image: Path
    out: Path
    json: Path | None
    shards: str | None
    accelerator: Accelerator
    config: EverythingConfig


@dataclass
class Done:
    """What a run adds up; `skipped` says why each photo was left out."""

    photos: int = 0
    masks: int = 0
    skipped: list[str] = field(default_factory=list)
    without_masks: list[str] = field(default_factory=list)


def run(options: EverythingOptions) -> Done:
    """Writes pictures of each photo, and records and shards where asked.

    Raises:
        UserError: A wrong path, weights of another model, or no photo that can be read.
    """
    photos = _images(options.image)
    _check_outputs(options)
    model = load_model(options.model, options.weights).to(
        chosen_device(options.accelerator, "--accelerator")
    )
    done, began = Done(), time.perf_counter()
    columns = (TextColumn("Segmenting"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("", total=len(photos))
        labelled = _labelled(
            photos, model, options, done, lambda share: progress.advance(task, share)
        )
        if options.shards is None:
            deque(labelled, maxlen=0)
        else:
            write_labelled(labelled, options.shards)
    if not done.photos:
        raise UserError(f"--image: no photo of {options.image} can be read ({done.skipped[0]})")
    _tell(done, options, time.perf_counter() - began)
    return done


def _labelled(
    photos: dict[str, Path],
    model: Segmenter,
    options: EverythingOptions,
    done: Done,
    advance: Callable[[float], None],
) -> Iterator[LabelledImage]:
    """Each photo with its masks, once its pictures and records are written."""
    for key, path in photos.items():
        try:
            image = read_image(path)
        except UserError as error:
            if options.image.is_file():
                raise
            done.skipped.append(str(error).removeprefix("--image: "))
            advance(1)
            continue
        records = generate_masks(model, image, options.config, advance)
        _write(key, image, records, options)
        done.photos += 1
        done.masks += len(records)
        if any(record["area"] for record in records):
            yield LabelledImage(key, path, image, records)
        else:
            done.without_masks.append(path.name)


def _write(
    key: str,
    image: UInt8[np.ndarray, "h w 3"],
    records: list[MaskRecord],
    options: EverythingOptions,
) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    masks = [
        ListedMask(one["segmentation"], one["predicted_iou"], one["stability_score"])
        for one in records
    ]
    everything_overlay(image, masks).save(options.out / f"{key}_overlay.png")
    everything_sheet(image, masks, key).save(options.out / f"{key}_masks.png")
    if options.json is not None:
        one_image = options.image.is_file()
        place = options.json if one_image else options.json / f"{key}.json"
        atomic_write_bytes(place, json.dumps(records, allow_nan=False).encode() + b"\n")


def _tell(done: Done, options: EverythingOptions, seconds: float) -> None:
    for reason in done.skipped:
        print(f"skipped {reason}")
    skipped = f", {len(done.skipped)} skipped" if done.skipped else ""
    none = len(done.without_masks)
    if none:
        named = ", ".join(done.without_masks[:5]) + (", ..." if none > 5 else "")
        left_out = ", left out of the shards" if options.shards is not None else ""
        print(f"no mask was kept in {counted(none, 'photo')}{left_out}: {named}")
    print(
        f"{counted(done.photos, 'photo')}{skipped}, {counted(done.masks, 'mask')}, "
        f"{seconds:.1f} s, "
        f"{seconds / done.photos:.1f} s a photo -> {options.out}"
    )
    for place in (options.json, options.shards):
        if place is not None:
            print(f"-> {place}")


def _images(image: Path) -> dict[str, Path]:
    """Photos by the name of what is written about them: stems, made unique, without dots."""
    if image.is_file():
        return {_key(image.stem): image}
    paths = images_in(image)
    found: dict[str, Path] = {}
    for path in paths:
        names = (path.stem, path.name, *(f"{path.name}_{i}" for i in range(2, len(paths) + 2)))
        key = next(_key(name) for name in names if _key(name) not in found)
        found[key] = path
    return found


def _key(name: str) -> str:
    return name.replace(".", "_")  # in a shard a key ends at its first dot


def _check_outputs(options: EverythingOptions) -> None:
    if options.json is None:
        return
    if options.image.is_dir() and options.json.is_file():
        raise UserError(
            f"--json: {options.json} is a file, but --image is a folder: give a folder for its "
            "photos' records"
        )
    if options.image.is_file() and options.json.is_dir():
        raise UserError(
            f"--json: {options.json} is a folder, but --image is one photo: give a file"
        )
