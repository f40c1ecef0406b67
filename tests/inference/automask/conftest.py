"""A plain reference: every mask at full size, for all clicks together, one loop per rule."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torchvision.ops import nms

from efficientsam_pl.inference.automask.config import EverythingConfig
from efficientsam_pl.inference.predictor import Predictor
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.rle import encode
from efficientsam_pl.structures import Prompts

EIGHT = np.ones((3, 3))
Reference = Callable[[Segmenter, np.ndarray, EverythingConfig], list[dict[str, Any]]]


def remove_small(mask: np.ndarray, min_area: int, holes: bool) -> tuple[np.ndarray, bool]:
    """Remove small regions with scipy on dense masks; SAM's rule if every island is small."""
    labels, count = ndimage.label(~mask if holes else mask, structure=EIGHT)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    small = [i + 1 for i in range(count) if sizes[i] < min_area]
    if not small:
        return mask, False
    if holes:
        return mask | np.isin(labels, small), True
    large = [i + 1 for i in range(count) if i + 1 not in small]
    if not large:  # ties take the first in rows of 2 x 2 pixels
        ys, xs = np.nonzero(np.isin(labels, np.flatnonzero(sizes == sizes.max()) + 1))
        first = np.lexsort((xs // 2, ys // 2))[0]
        large = [labels[ys[first], xs[first]]]
    return np.isin(labels, large), True


def frame(mask: np.ndarray) -> list[int]:
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), xs.max(), ys.max()] if len(xs) else [0, 0, 0, 0]


def crop_boxes(height: int, width: int, layers: int, ratio: float) -> list[tuple[list[int], int]]:
    records = [([0, 0, width, height], 0)]
    for layer in range(1, layers + 1):
        n = 2**layer
        overlap = int(ratio * min(height, width) * (2 / n))
        w = math.ceil((overlap * (n - 1) + width) / n)
        h = math.ceil((overlap * (n - 1) + height) / n)
        for i in range(n):
            for j in range(n):
                x, y = (w - overlap) * i, (h - overlap) * j
                records.append(([x, y, min(x + w, width), min(y + h, height)], layer))
    return records


def grid(height: int, width: int, per_side: int, config: EverythingConfig) -> list[list[float]]:
    if config.grid == "corners":
        steps = [(i, j) for i in range(per_side) for j in range(per_side)]
        return [[0.5 + i / per_side * width, 0.5 + j / per_side * height] for i, j in steps]
    steps = [(i, j) for j in range(per_side) for i in range(per_side)]
    return [[(i + 0.5) / per_side * width, (j + 0.5) / per_side * height] for i, j in steps]


def suppress(records: list[dict[str, Any]], scores: list[float], limit: float) -> list[Any]:
    if not records:
        return []
    boxes = torch.tensor([record["box"] for record in records]).float()
    return [records[i] for i in nms(boxes, torch.tensor(scores), limit).tolist()]


def near_edge(box: list[int], crop: list[int], frame_box: list[int]) -> bool:
    sides = zip(box, crop, frame_box, strict=True)
    return any(abs(b - c) <= 20 and abs(b - p) > 20 for b, c, p in sides)


@torch.inference_mode()
def in_crop(
    model: Segmenter, image: np.ndarray, crop: list[int], per_side: int, config: EverythingConfig
) -> list[dict[str, Any]]:
    x0, y0, x1, y1 = crop
    height, width = image.shape[:2]
    embedded = Predictor(model).embed(image[y0:y1, x0:x1].copy())
    points = torch.tensor(grid(y1 - y0, x1 - x0, per_side, config), dtype=torch.float64)
    xy = embedded.resize.points_forward(points).float()[None, :, None]
    prediction = model._decode(embedded.features, Prompts.of_clicks(xy)).candidates()
    logits = embedded.resize.masks_back(prediction.low_res_logits[0]).numpy()
    records = []
    for q, point in enumerate(points.tolist()):
        tokens = range(prediction.iou.shape[2])
        if config.candidates == "best":
            tokens = [int(prediction.iou[0, q].argmax())]
        for k in tokens:
            iou, cut = prediction.iou[0, q, k].item(), config.stability_score_offset
            if config.pred_iou_thresh > 0 and iou <= config.pred_iou_thresh:
                continue
            union = (logits[q, k] > -cut).sum()
            stability = (logits[q, k] > cut).sum() / union if union else 0.0
            if config.stability_score_thresh > 0 and stability < config.stability_score_thresh:
                continue
            box = [b + c for b, c in zip(frame(logits[q, k] > 0), (x0, y0) * 2, strict=True)]
            if near_edge(box, crop, [0, 0, width, height]):
                continue
            mask = np.zeros((height, width), dtype=bool)
            mask[y0:y1, x0:x1] = logits[q, k] > 0
            point_xy = [point[0] + x0, point[1] + y0]
            records.append(
                {"mask": mask, "box": box, "iou": iou, "stability": stability, "at": point_xy}
                | {"crop": [x0, y0, x1 - x0, y1 - y0]}
            )
    return records


def without_small_regions(
    records: list[dict[str, Any]], config: EverythingConfig
) -> list[dict[str, Any]]:
    scores = []
    for record in records:
        record["old"] = record["box"]
        record["mask"], filled = remove_small(record["mask"], config.min_mask_region_area, True)
        record["mask"], dropped = remove_small(record["mask"], config.min_mask_region_area, False)
        record["box"], record["changed"] = frame(record["mask"]), filled or dropped
        scores.append(float(not record["changed"]))
    kept = suppress(records, scores, max(config.box_nms_thresh, config.crop_nms_thresh))
    return [
        record | {"box": record["box"] if record["changed"] else record["old"]} for record in kept
    ]


def everything(
    model: Segmenter, image: np.ndarray, config: EverythingConfig
) -> list[dict[str, Any]]:
    height, width = image.shape[:2]
    boxes = crop_boxes(height, width, config.crop_n_layers, config.crop_overlap_ratio)
    records = []
    for crop, layer in boxes:
        per_side = int(config.points_per_side / config.crop_n_points_downscale_factor**layer)
        crop_records = in_crop(model, image, crop, per_side, config)
        if config.suppression == "each_crop":
            crop_records = suppress(
                crop_records, [record["iou"] for record in crop_records], config.box_nms_thresh
            )
        records += crop_records
    if len(boxes) > 1:
        scores = [1 / (record["crop"][2] * record["crop"][3]) for record in records]
        records = suppress(records, scores, config.crop_nms_thresh)
    if config.min_mask_region_area > 0:
        records = without_small_regions(records, config)
    return [
        {
            "segmentation": encode(record["mask"]),
            "area": int(record["mask"].sum()),
            "bbox": [
                *record["box"][:2],
                record["box"][2] - record["box"][0],
                record["box"][3] - record["box"][1],
            ],
            "predicted_iou": record["iou"],
            "point_coords": [record["at"]],
            "stability_score": record["stability"],
            "crop_box": record["crop"],
        }
        for record in records
    ]


@pytest.fixture(scope="session")
def slow_everything() -> Reference:
    return everything


@pytest.fixture(scope="session")
def slow_removal() -> Callable[[np.ndarray, int, bool], tuple[np.ndarray, bool]]:
    return remove_small
