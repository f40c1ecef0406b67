"""Time the evaluation of detectors: pasted masks as run-lengths, and COCO's numbers.

Masks are pasted by detectron2's description: each is sampled bilinearly at the pixel centres of the
image, in a loop, compared with one half, and encoded. COCO's numbers are pycocotools'.
"""

import contextlib
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from benchmarks.harness import Row, alternate, peak_memory_rise, timed_rows
from efficientsam_pl.evaluation.metrics.detection_ap import DetectedObjects, DetectionAp
from efficientsam_pl.models.detection.pasting import paste_run_lengths
from efficientsam_pl.records import Instance, InstanceImage
from efficientsam_pl.rle import areas, encode_many

NAME = "downstream"
SIDE, DETECTIONS = 1024, 100  # pixels of the image; pasted masks
CATEGORIES, IMAGES = 80, 5000
_HW = (480, 640)
_OBJECTS, _FOUND, _DRAWN = 7, 40, 16  # of an image; images whose masks all others reuse
_OF_OWN = 8  # categories that occur in an image
_Way = Literal["ours", "plain"]
_WAYS: tuple[_Way, ...] = ("ours", "plain")


def measure(quick: bool, seconds: float) -> list[Row]:
    """Rows of pasting and of COCO's numbers.

    Args:
        quick: Whether to evaluate fewer images, and to leave out memory.
        seconds: No further round starts that would end later than this.
    """
    start = time.perf_counter()
    rows = pasting_rows(quick, seconds / 4)
    left = seconds - (time.perf_counter() - start)
    return [*rows, *evaluation_rows(200 if quick else IMAGES, left, memory=not quick)]


def pasting_rows(quick: bool, seconds: float) -> list[Row]:
    """Compare time, memory and areas of pasted run-lengths."""
    pasted: dict[str, list[Any]] = {}
    ways = {way: prepare_pasting(way) for way in _WAYS}

    def run(way: _Way) -> None:
        pasted[way] = ways[way]()

    run("ours")  # the first call prepares threads
    taken = alternate({way: partial(run, way) for way in _WAYS}, 2 if quick else 7, seconds)
    work = f"{DETECTIONS} masks of 28x28 pasted into {SIDE}x{SIDE} pixels, as run-lengths"
    reference = "each sampled at all pixels of the image, in a loop, as detectron2 on a CPU"
    apart = np.abs(areas(pasted["ours"]) - areas(pasted["plain"]))
    rows = [
        *timed_rows(
            (f"{NAME}.pasting", f"{NAME}.pasting_processor_time"),
            f"{work}; reference: {reference}",
            taken["ours"],
            taken["plain"],
            goal=0.5,
        ),
        Row(
            id=f"{NAME}.pasting_area_difference",
            work=f"{work}: the largest difference of an area to the reference's",
            value=float(apart.max()),
            unit="pixels",
            goal=0,
        ),
    ]
    return rows if quick else [*rows, _memory_row("pasting", work, prepare_pasting)]


def evaluation_rows(images: int, seconds: float, memory: bool) -> list[Row]:
    """Compare time, memory and numbers of box and mask AP."""
    numbers: dict[str, np.ndarray] = {}
    ways = {way: prepare_evaluation(way, images) for way in _WAYS}

    def run(way: _Way) -> None:
        numbers[way] = ways[way]()

    rounds = 3 if memory else 1
    taken = alternate({way: partial(run, way) for way in _WAYS}, rounds, seconds)
    work = (
        f"box and mask AP of {images} images of 640x480 with {_OBJECTS} objects and {_FOUND} "
        f"detections each, {CATEGORIES} categories"
    )
    rows = [
        Row(
            id=f"{NAME}.coco_evaluation",
            work=f"{work}: how many times as fast as pycocotools' evaluate and accumulate of the "
            "same run-lengths, its loading left out",
            value=taken["plain"].wall / taken["ours"].wall,
            unit="times",
            goal=5,
            better="higher",
        ),
        *timed_rows(
            (f"{NAME}.coco_evaluation_time", f"{NAME}.coco_evaluation_processor_time"),
            f"{work}; reference: pycocotools",
            taken["ours"],
            taken["plain"],
            goal=0.2,
        ),
        Row(
            id=f"{NAME}.coco_evaluation_difference",
            work=f"{work}: the largest difference to pycocotools' 24 numbers",
            value=float(np.abs(numbers["ours"] - numbers["plain"]).max()),
            unit="AP",
            goal=1e-9,
        ),
    ]
    prepare = partial(prepare_evaluation, images=images)
    return [*rows, _memory_row("coco_evaluation", work, prepare)] if memory else rows


def _memory_row(of: str, work: str, prepare: Callable[[_Way], Callable[[], object]]) -> Row:
    peaks = [peak_memory_rise(partial(prepare, way)) for way in _WAYS]
    return Row(
        id=f"{NAME}.{of}_peak_memory",
        work=f"{work}: rise of resident memory",
        value=peaks[0] / 2**20,
        unit="MiB",
        reference=peaks[1] / 2**20,
    )


def prepare_pasting(way: _Way) -> Callable[[], Any]:
    """Return a function that pastes a detector's masks, of objects of all sizes."""
    draw = torch.Generator().manual_seed(0)
    sizes = 12 * 60 ** torch.rand(DETECTIONS, 2, generator=draw)  # 12 to 720 pixels
    corners = (SIDE - sizes).clamp(min=0) * torch.rand(DETECTIONS, 2, generator=draw)
    boxes = torch.cat([corners, (corners + sizes).clamp(max=SIDE)], dim=1)
    coarse = 3 * torch.randn(DETECTIONS, 1, 5, 5, generator=draw)
    probs = F.interpolate(coarse, (28, 28), mode="bicubic")[:, 0].sigmoid()
    paste = paste_run_lengths if way == "ours" else paste_in_a_loop
    return partial(paste, probs, boxes, (SIDE, SIDE))


def paste_in_a_loop(probs: Tensor, boxes: Tensor, image_hw: tuple[int, int]) -> list[Any]:
    """Paste one mask after another over the whole image, and encode it."""
    rows, columns = (torch.arange(side, dtype=torch.float32) + 0.5 for side in image_hw)
    encoded = []
    for mask, (x0, y0, x1, y1) in zip(probs, boxes, strict=True):
        y = (rows - y0) / (y1 - y0) * 2 - 1
        x = (columns - x0) / (x1 - x0) * 2 - 1
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
        pasted = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0] >= 0.5
        encoded.append(coco_mask.encode(np.asfortranarray(pasted.numpy().astype(np.uint8))))
    return encoded


@dataclass(frozen=True)
class Evaluated:
    """An image with what is there and what was detected."""

    truth: InstanceImage
    detected: DetectedObjects


@cache
def evaluated_images(count: int) -> tuple[Evaluated, ...]:
    """Make images with ellipses and detections near them, of a few of the categories each."""
    draw, made = np.random.default_rng(0), []
    drawn = [_ellipses(draw) for _ in range(_DRAWN)]
    for number in range(count):
        masks, detected = drawn[number % _DRAWN]
        drawn_from = draw.permutation(CATEGORIES)[:_OF_OWN]
        classes = drawn_from[draw.integers(_OF_OWN, size=_OBJECTS)]
        pixels = areas(masks)
        instances = tuple(
            Instance(place, int(classes[place]), mask, float(pixels[place]), crowd=place == 6)
            for place, mask in enumerate(masks)
        )
        right = draw.random(_FOUND) < 0.7
        guessed = np.where(
            right, classes[np.arange(_FOUND) % _OBJECTS], draw.choice(drawn_from, _FOUND)
        )
        made.append(
            Evaluated(
                InstanceImage(number, f"{number:06d}", _HW, instances),
                DetectedObjects(
                    guessed.tolist(),
                    draw.random(_FOUND).tolist(),
                    coco_mask.toBbox(detected),
                    detected,
                ),
            )
        )
    return tuple(made)


def _ellipses(draw: np.random.Generator) -> tuple[list[Any], list[Any]]:
    """Draw an image's objects, and detections near them."""
    y, x = np.mgrid[: _HW[0], : _HW[1]]
    shapes = draw.uniform((40, 40, 8, 8), (440, 600, 150, 150), (_OBJECTS, 4))
    near = shapes[np.arange(_FOUND) % _OBJECTS] * draw.uniform(0.9, 1.1, (_FOUND, 4))
    ours, theirs = (
        encode_many(
            np.stack(
                [((y - v) / high) ** 2 + ((x - u) / wide) ** 2 <= 1 for v, u, high, wide in of]
            )
        )
        for of in (shapes, near)
    )
    return ours, theirs


def prepare_evaluation(way: _Way, images: int) -> Callable[[], np.ndarray]:
    """Return a function that computes the 24 numbers."""
    made = evaluated_images(images)
    return partial(by_us, made) if way == "ours" else _by_pycocotools(made)


def by_us(made: Sequence[Evaluated]) -> np.ndarray:
    """Score images one by one, as an evaluation does."""
    metric = DetectionAp(CATEGORIES)
    for image in made:
        metric.update(image.truth.path, image.truth, image.detected)
    scores = metric.compute()
    return np.array([*scores.box, *scores.mask])


def _by_pycocotools(made: Sequence[Evaluated]) -> Callable[[], np.ndarray]:
    """Load the records; return a function that evaluates and accumulates them."""
    truth = COCO()
    truth.dataset = {
        "images": [{"id": n, "height": _HW[0], "width": _HW[1]} for n in range(len(made))],
        "annotations": [
            {
                "id": n * _OBJECTS + i.id + 1,
                "image_id": n,
                "category_id": i.category_id,
                "area": i.area,
                "iscrowd": int(i.crowd),
                "segmentation": i.mask,
                "bbox": coco_mask.toBbox(i.mask).tolist(),
            }
            for n, image in enumerate(made)
            for i in image.truth.instances
        ],
        "categories": [{"id": category} for category in range(CATEGORIES)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        loaded = {kind: truth.loadRes(_results(made, kind)) for kind in ("bbox", "segm")}

    def evaluate() -> np.ndarray:
        numbers = []
        with contextlib.redirect_stdout(io.StringIO()):
            for kind, results in loaded.items():
                evaluation = COCOeval(truth, results, kind)
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
                numbers += evaluation.stats.tolist()
        return np.array(numbers)

    return evaluate


def _results(made: Sequence[Evaluated], kind: str) -> list[dict[str, Any]]:
    key = "bbox" if kind == "bbox" else "segmentation"
    return [
        {"image_id": n, "category_id": category, "score": score, key: shape}
        for n, image in enumerate(made)
        for category, score, shape in zip(
            image.detected.classes,
            image.detected.scores,
            image.detected.boxes_xywh.tolist() if kind == "bbox" else image.detected.masks,
            strict=True,
        )
    ]
