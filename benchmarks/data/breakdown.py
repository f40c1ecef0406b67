"""Time of each step of preparing a masked image. A part of benchmarks.data."""

from collections.abc import Callable, Sequence
from functools import partial

import simplejpeg
from pycocotools import mask as coco_mask

from benchmarks.harness import Row, alternate
from efficientsam_pl.data.mask_sampling import random_clicks, tight_boxes
from efficientsam_pl.data.schema import from_json
from efficientsam_pl.geometry import Resize
from efficientsam_pl.mask_coverage import half_covered
from efficientsam_pl.rle import run_lengths

_MASKS, _SIDE = 32, 1024


def part_rows(
    original: Sequence[tuple[bytes, bytes]], packed: Sequence[tuple[bytes, bytes]], rounds: int
) -> list[Row]:
    """Measure the milliseconds an image of each step.

    Args:
        original: JPEG and JSON of SA-1B's images.
        packed: The same images, packed smaller.
        rounds: Number of timings of each step.
    """
    parts: dict[str, Callable[[], object]] = {}
    for name, samples in (("original", original), ("packed", packed)):
        images = [simplejpeg.decode_jpeg(jpeg) for jpeg, _ in samples]
        resizes = [Resize.fit((p.shape[0], p.shape[1]), _SIDE, "squash") for p in images]
        rles = [[a.rle for a in from_json(record).annotations[:_MASKS]] for _, record in samples]
        runs = [run_lengths(group) for group in rles]
        laid = list(zip(runs, (resize.mask_grid(256) for resize in resizes), strict=True))
        parts |= {
            f"{name} record": partial(_each, from_json, [(record,) for _, record in samples]),
            f"{name} runs": partial(_each, run_lengths, [(group,) for group in rles]),
            f"{name} masks": partial(_each, half_covered, laid),
            f"{name} decoded": partial(_each, coco_mask.decode, [(group,) for group in rles]),
            f"{name} boxes": partial(_each, tight_boxes, [(group,) for group in rles]),
            f"{name} clicks": partial(
                _each, random_clicks, [(counts, g.image_hw[0], 1, 7) for counts, g in laid]
            ),
            f"{name} resize": partial(_resized, "bytes_forward", resizes, images),
            f"{name} floats": partial(_resized, "image_forward", resizes, images),
        }
    taken = alternate(parts, rounds)
    spent = {name: 1e3 * times.wall / len(original) for name, times in taken.items()}
    return [row for name in ("original", "packed") for row in _rows(name, spent)]


def _rows(name: str, spent: dict[str, float]) -> list[Row]:
    descriptions = {
        "masks": f"{_MASKS} masks from their runs to 256; reference: pycocotools decodes them",
        "resize": "to 1024 as bytes; reference: in float32, as the predictor does",
        "record": "JSON and records of 100 annotations",
        "runs": f"run lengths of {_MASKS} masks",
        "boxes": f"boxes of {_MASKS} masks",
        "clicks": f"a click in each of {_MASKS} masks",
    }
    against = {"masks": "decoded", "resize": "floats"}
    return [
        Row(
            id=f"data.part_{part}.{name}",
            work=f"{name} photo: {work}",
            value=spent[f"{name} {part}"],
            unit="ms",
            reference=spent[f"{name} {against[part]}"] if part in against else None,
        )
        for part, work in descriptions.items()
    ]


def _each(part: Callable[..., object], arguments: Sequence[tuple[object, ...]]) -> None:
    for group in arguments:
        part(*group)


def _resized(way: str, resizes: Sequence[Resize], images: Sequence[object]) -> None:
    for resize, image in zip(resizes, images, strict=True):
        getattr(resize, way)(image)
