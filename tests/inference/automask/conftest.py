"""A plain reference: every mask at the photo's size, for all clicks at once, one loop a rule."""

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
    """Dense masks and scipy's regions; SAM's rule where every island is small."""
    labels, count = ndimage.label(~mask if holes else mask, structure=EIGHT)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    small = [i + 1 for i in range(count) if sizes[i] < min_area]
    if not small:
        return mask, False
    if holes:
        return mask | np.isin(labels, small), True
    large = [i + 1 for i in range(count) if i + 1 not in small]
    if not large:  # of equals the first in rows of 2 x 2 pixels
        ys, xs = np.nonzero(np.isin(labels, np.flatnonzero(sizes == sizes.max()) + 1))
        first = np.lexsort((xs // 2, ys // 2))[0]
        large = [labels[ys[first], xs[first]]]
    return np.isin(labels, large), True


def frame(mask: np.ndarray) -> list[int]:
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), xs.max(), ys.max()] if len(xs) else [0, 0, 0, 0]


def crop_boxes(height: int, width: int, layers: int, ratio: float) -> list[tuple[list[int], int]]:
    found = [([0, 0, width, height], 0)]
    for layer in range(1, layers + 1):
        n = 2**layer
        overlap = int(ratio * min(height, width) * (2 / n))
        w = math.ceil((overlap * (n - 1) + width) / n)
        h = math.ceil((overlap * (n - 1) + height) / n)
        for i in range(n):
            for j in range(n):
                x, y = (w - overlap) * i, (h - overlap) * j
                found.append(([x, y, min(x + w, width), min(y + h, height)], layer))
    return found


def grid(height: int, width: int, a_side: int, config: EverythingConfig) -> list[list[float]]:
    if config.grid == "corners":
        steps = [(i, j) for i in range(a_side) for j in range(a_side)]
        return [[0.5 + i / a_side * width, 0.5 + j / a_side * height] for i, j in steps]
    steps = [(i, j) for j in range(a_side) for i in range(a_side)]
    return [[(i + 0.5) / a_side * width, (j + 0.5) / a_side * height] for i, j in steps]


def suppress(found: list[dict[str, Any]], scores: list[float], limit: float) -> list[Any]:
    if not found:
        return []
    boxes = torch.tensor([one["box"] for one in found]).float()
    return [found[i] for i in nms(boxes, torch.tensor(scores), limit).tolist()]


def near_edge(box: list[int], crop: list[int], photo: list[int]) -> bool:
    sides = zip(box, crop, photo, strict=True)
    return any(abs(b - c) <= 20 and abs(b - p) > 20 for b, c, p in sides)


@torch.inference_mode()
def in_crop(
    model: Segmenter, image: np.ndarray, crop: list[int], a_side: int, config: EverythingConfig
) -> list[dict[str, Any]]:
    x0, y0, x1, y1 = crop
    height, width = image.shape[:2]
    embedded = Predictor(model).embed(image[y0:y1, x0:x1].copy())
    points = torch.tensor(grid(y1 - y0, x1 - x0, a_side, config), dtype=torch.float64)
    xy = embedded.resize.points_forward(points).float()[None, :, None]
    answer = model._decode(embedded.features, Prompts.of_clicks(xy)).candidates()
    logits = embedded.resize.masks_back(answer.low_res_logits[0]).numpy()
    found = []
    for q, point in enumerate(points.tolist()):
        tokens = range(answer.iou.shape[2])
        if config.candidates == "best":
            tokens = [int(answer.iou[0, q].argmax())]
        for k in tokens:
            iou, cut = answer.iou[0, q, k].item(), config.stability_score_offset
            if config.pred_iou_thresh > 0 and iou <= config.pred_iou_thresh:
                continue
            perhaps = (logits[q, k] > -cut).sum()
            stability = (logits[q, k] > cut).sum() / perhaps if perhaps else 0.0
            if config.stability_score_thresh > 0 and stability < config.stability_score_thresh:
                continue
            box = [b + c for b, c in zip(frame(logits[q, k] > 0), (x0, y0) * 2, strict=True)]
            if near_edge(box, crop, [0, 0, width, height]):
                continue
            mask = np.zeros((height, width), dtype=bool)
            mask[y0:y1, x0:x1] = logits[q, k] > 0
            at = [point[0] + x0, point[1] + y0]
            found.append(
                {"mask": mask, "box": box, "iou": iou, "stability": stability, "at": at}
                | {"crop": [x0, y0, x1 - x0, y1 - y0]}
            )
    return found


def cleaned(found: list[dict[str, Any]], config: EverythingConfig) -> list[dict[str, Any]]:
    scores = []
    for one in found:
        one["old"] = one["box"]
        one["mask"], filled = remove_small(one["mask"], config.min_mask_region_area, True)
        one["mask"], dropped = remove_small(one["mask"], config.min_mask_region_area, False)
        one["box"], one["changed"] = frame(one["mask"]), filled or dropped
        scores.append(float(not one["changed"]))
    kept = suppress(found, scores, max(config.box_nms_thresh, config.crop_nms_thresh))
    return [one | {"box": one["box"] if one["changed"] else one["old"]} for one in kept]


def everything(
    model: Segmenter, image: np.ndarray, config: EverythingConfig
) -> list[dict[str, Any]]:
    height, width = image.shape[:2]
    boxes = crop_boxes(height, width, config.crop_n_layers, config.crop_overlap_ratio)
    found = []
    for crop, layer in boxes:
        a_side = int(config.points_per_side / config.crop_n_points_downscale_factor**layer)
        own = in_crop(model, image, crop, a_side, config)
        if config.suppression == "each_crop":
            own = suppress(own, [one["iou"] for one in own], config.box_nms_thresh)
        found += own
    if len(boxes) > 1:
        scores = [1 / (one["crop"][2] * one["crop"][3]) for one in found]
        found = suppress(found, scores, config.crop_nms_thresh)
    if config.min_mask_region_area > 0:
        found = cleaned(found, config)
    return [
        {
            "segmentation": encode(one["mask"]),
            "area": int(one["mask"].sum()),
            "bbox": [*one["box"][:2], one["box"][2] - one["box"][0], one["box"][3] - one["box"][1]],
            "predicted_iou": one["iou"],
            "point_coords": [one["at"]],
            "stability_score": one["stability"],
            "crop_box": one["crop"],
        }
        for one in found
    ]


@pytest.fixture(scope="session")
def slow_everything() -> Reference:
    return everything


@pytest.fixture(scope="session")
def slow_removal() -> Callable[[np.ndarray, int, bool], tuple[np.ndarray, bool]]:
    return remove_small
