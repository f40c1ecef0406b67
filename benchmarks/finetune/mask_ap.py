"""Mask AP of dense masks, compared with torchmetrics and pycocotools; part of benchmarks.finetune.

faster-coco-eval has a row if it is installed.
"""

import contextlib
import importlib
import importlib.util
import io
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from benchmarks.harness import Row, alternate, peak_memory_rise, timed_rows
from efficientsam_pl.evaluation.metrics.average_precision import MaskAp
from efficientsam_pl.evaluation.metrics.matching import RECALLS, THRESHOLDS
from efficientsam_pl.rle import Rle, area, encode_many

_HEIGHT, _WIDTH = 480, 640
_DRAWN = 10  # images; the others reuse their masks with other scores


@dataclass(frozen=True)
class MaskedImage:
    """Ground-truth and predicted masks."""

    truth: Bool[Tensor, "q h w"]
    predicted: Bool[Tensor, "q h w"]
    scores: Float[Tensor, "q"]


@dataclass(frozen=True)
class EncodedImage:
    """Ground-truth and predicted masks as run-lengths."""

    truth: list[Rle]
    predicted: list[Rle]
    scores: Float[Tensor, "q"]


def rows(quick: bool) -> list[Row]:
    """Measure time from masks to AP, the backend's share, equality, and memory for COCO val."""
    count, rounds = (60, 3) if quick else (1000, 3)
    photos = masked_images(count, masks=30)
    taken = alternate(
        {"ours": partial(ours, photos), "torchmetrics": partial(by_torchmetrics, photos)}, rounds
    )
    work = f"{count} images of {_WIDTH}x{_HEIGHT}, 30 masks and 30 predictions each"
    measured = [
        *timed_rows(
            ("finetune.mask_ap", "finetune.mask_ap_processor_time"),
            f"{work}: bool tensors to COCO's twelve numbers; reference: torchmetrics' "
            "MeanAveragePrecision with pycocotools",
            taken["ours"],
            taken["torchmetrics"],
            goal=0.25,
        ),
        *backend_rows([encoded(image) for image in photos], work),
    ]
    if not quick:
        measured.append(memory_row())
    return measured


def backend_rows(photos: Sequence[EncodedImage], work: str) -> list[Row]:
    """Compare the twelve metrics from run-lengths, and their time, by each program."""
    metric = filled(photos)
    backends: dict[str, Callable[[], object]] = {"ours": metric.compute}
    backends["pycocotools"] = partial(by_coco, photos, COCO, COCOeval)
    if importlib.util.find_spec("faster_coco_eval"):
        module: Any = importlib.import_module("faster_coco_eval")
        backends["faster_coco_eval"] = partial(by_coco, photos, module.COCO, module.COCOeval_faster)
    seconds, numbers = {}, {}
    for name, backend in backends.items():
        start = time.perf_counter()
        numbers[name] = np.array(backend(), dtype=np.float64)[:12]
        seconds[name] = time.perf_counter() - start
    measured = [
        Row(
            id=f"finetune.mask_ap_backend.{name}",
            work=f"{work}: run-lengths to the twelve numbers by {name}; reference: pycocotools",
            value=seconds[name],
            unit="s",
            reference=seconds["pycocotools"],
        )
        for name in backends
        if name != "pycocotools"
    ]
    difference = Row(
        id="finetune.mask_ap_difference",
        work="the largest difference of ours to pycocotools' twelve numbers",
        value=float(np.abs(numbers["ours"] - numbers["pycocotools"]).max()),
        unit="AP",
        goal=1e-9,
    )
    return [*measured, difference]


def memory_row() -> Row:
    """Measure the memory of all of COCO val on one rank, as after gathering from all ranks."""
    return Row(
        id="finetune.mask_ap_memory",
        work="resident memory at its peak above the start: the metric's state of 5000 images with "
        "36,000 masks and as many predictions, and COCO's twelve metrics of them",
        value=peak_memory_rise(partial(prepare_coco_val, 5000, 36_000)) / 2**30,
        unit="GiB",
        goal=2.0,
    )


def masked_images(count: int, masks: int) -> list[MaskedImage]:
    """Make images of wavy discs, with predictions that are slightly shifted."""
    draw = np.random.default_rng(0)
    drawn = [_discs(draw, masks) for _ in range(min(count, _DRAWN))]
    return [
        MaskedImage(*drawn[number % len(drawn)], torch.from_numpy(draw.random(masks)))
        for number in range(count)
    ]


def ours(photos: Sequence[MaskedImage]) -> object:
    """Compute AP from dense masks by this package."""
    return filled(map(encoded, photos)).compute()


def by_torchmetrics(photos: Sequence[MaskedImage]) -> object:
    """Compute AP from dense masks by torchmetrics, which uses pycocotools."""
    metric = MeanAveragePrecision(
        iou_type="segm",
        backend="pycocotools",
        # COCO's; torchmetrics' are float32, and a recall of exactly 0.25 is below them
        iou_thresholds=THRESHOLDS.tolist(),
        rec_thresholds=RECALLS.tolist(),
    )
    for image in photos:
        labels = torch.zeros(len(image.truth), dtype=torch.int64)
        predicted = {"masks": image.predicted, "scores": image.scores.float(), "labels": labels}
        metric.update([predicted], [{"masks": image.truth, "labels": labels}])
    return metric.compute()


def encoded(image: MaskedImage) -> EncodedImage:
    """Encode the masks of an image as run-lengths."""
    truth, predicted = (
        encode_many(masks.cpu().numpy()) for masks in (image.truth, image.predicted)
    )
    return EncodedImage(truth, predicted, image.scores)


def filled(photos: Iterable[EncodedImage]) -> MaskAp:
    """Create the metric and update it with these images."""
    metric = MaskAp()
    for number, image in enumerate(photos):
        metric.update(f"{number:06}", image.truth, image.predicted, image.scores)
    return metric


def by_coco(photos: Sequence[EncodedImage], dataset: Any, evaluation: Any) -> object:
    """Evaluate by pycocotools, or another package with its interface."""
    annotations: list[dict[str, Any]] = []
    results = []
    for number, image in enumerate(photos):
        ids = {"image_id": number, "category_id": 1}
        for mask in image.truth:
            sizes = {"area": area(mask), "bbox": coco_mask.toBbox(mask).tolist()}
            entry = {"id": len(annotations) + 1, "iscrowd": 0, "segmentation": mask}
            annotations.append(ids | entry | sizes)
        results += [
            ids | {"segmentation": mask, "score": score}
            for mask, score in zip(image.predicted, image.scores.tolist(), strict=True)
        ]
    images = [{"id": n, "height": _HEIGHT, "width": _WIDTH} for n in range(len(photos))]
    categories = [{"id": 1, "name": "object"}]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = dataset()
        truth.dataset = {"images": images, "annotations": annotations, "categories": categories}
        truth.createIndex()
        predicted = truth.loadRes(results)
        run = evaluation(truth, predicted, "segm")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats


def prepare_coco_val(photos: int, masks: int) -> Callable[[], object]:
    """Prepare filling a metric with many images and masks, and computing it."""
    drawn = [encoded(image) for image in masked_images(_DRAWN, masks=30)]
    draw = np.random.default_rng(0)
    counts = np.bincount(draw.integers(0, photos, masks), minlength=photos)

    def work() -> object:
        metric = MaskAp()
        for number, count in enumerate(counts):
            image, subset = drawn[number % len(drawn)], slice(0, int(count))
            metric.update(
                f"{number:012}", image.truth[subset], image.predicted[subset], image.scores[subset]
            )
        return metric.compute()

    return work


def _discs(
    draw: np.random.Generator, count: int
) -> tuple[Bool[Tensor, "q h w"], Bool[Tensor, "q h w"]]:
    centres = draw.uniform((0, 0), (_WIDTH, _HEIGHT), (count, 2))
    radii, phases = draw.uniform(5, 120, (count, 2)), draw.uniform(0, 6, count)
    moved = centres + draw.normal(0, 0.15, (count, 2)) * radii
    stretched = radii * draw.uniform(0.8, 1.2, (count, 2))
    return _wavy(centres, radii, phases), _wavy(moved, stretched, phases + 0.3)


def _wavy(
    centres: Float[np.ndarray, "q 2"], radii: Float[np.ndarray, "q 2"], phases: Any
) -> Bool[Tensor, "q h w"]:
    y, x = np.mgrid[:_HEIGHT, :_WIDTH].astype(np.float32)
    masks = []
    for (cx, cy), (rx, ry), phase in zip(centres, radii, phases, strict=True):
        edge = 1 + 0.15 * np.sin(5 * np.arctan2(y - cy, x - cx) + phase)
        masks.append(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < edge**2)
    return torch.from_numpy(np.stack(masks))
