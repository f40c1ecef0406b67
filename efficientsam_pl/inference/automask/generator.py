"""Segment everything: a grid of clicks, every answer, and what of them is worth keeping.

The semantics are those of SAM's automatic mask generator. Other than there, masks at the photo's
size live one at a time in each thread, and only those that pass the predicted IoU are made at all.

Axes: n masks, h w pixels of the photo, mh mw the decoder's logits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, UInt8

from efficientsam_pl.inference.automask.config import EverythingConfig
from efficientsam_pl.inference.automask.crops import Crop, build_point_grid, generate_crop_boxes
from efficientsam_pl.inference.automask.filters import (
    is_box_near_crop_edge,
    mask_boxes,
    without_duplicates,
    without_small_regions,
)
from efficientsam_pl.inference.automask.records import MaskRecord, MaskSet
from efficientsam_pl.inference.automask.upscaling import Upscaling
from efficientsam_pl.inference.predictor import EmbeddedImage, Predictor
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.rle import encode
from efficientsam_pl.structures import Prompts

# Batches whose masks are made while the next is decoded; a CPU's cores do one after the other,
# since a decoder's threads that wait for each other wait longer beside other work
_OVERLAPPING = {"cpu": 0}
_OVERLAPPING_ELSEWHERE = 1


@dataclass(frozen=True)
class _Candidate:
    """One answer to a click, low in resolution."""

    low_res: Float[np.ndarray, "mh mw"]
    iou: np.float32
    point_xy: Float64[np.ndarray, "2"]  # in the crop


def generate_masks(
    model: Segmenter,
    image: UInt8[np.ndarray, "h w 3"],
    config: EverythingConfig | None = None,
    advance: Callable[[float], None] | None = None,
) -> list[MaskRecord]:
    """Masks of everything in a photo, as SAM's generator would return them.

    They come by falling predicted IoU, with crops or small regions in the order that the last
    suppression leaves. A stability score is 0 where SAM's is NaN, for a mask that is empty at
    either cut.

    Args:
        model: Answers on its own device.
        image: RGB.
        config: What is asked and kept; None: SAM's defaults.
        advance: Told the share of the work done since it was told last, up to 1 in sum.

    Raises:
        PromptError: `image` is not uint8 [h, w, 3].
    """
    config = config or EverythingConfig()
    predictor = Predictor(model)
    image_hw = (image.shape[0], image.shape[1])
    places = generate_crop_boxes(image_hw, config.crop_n_layers, config.crop_overlap_ratio)
    clicked = sum(config.points_in_layer(crop.layer) ** 2 for crop in places)
    parts = []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for crop in places:
            x0, y0, x1, y1 = crop.xyxy
            embedded = predictor.embed(np.ascontiguousarray(image[y0:y1, x0:x1]))
            batches = []
            for found, points in _in_crop(embedded, crop, image_hw, config, pool):
                batches.append(found)
                if advance is not None:
                    advance(points / clicked)
            part = MaskSet.joined(batches)
            if config.suppression == "each_crop":
                part = without_duplicates(part, part.iou, config.box_nms_thresh)
            parts.append(part)
    return _in_image(parts, config).records()


def _in_image(parts: list[MaskSet], config: EverythingConfig) -> MaskSet:
    found = MaskSet.joined(parts)
    if len(parts) > 1:
        smallness = 1 / found.crops_xywh[:, 2:].prod(axis=1).astype(np.float32)
        found = without_duplicates(found, smallness, config.crop_nms_thresh)
    if config.min_mask_region_area > 0:
        threshold = max(config.box_nms_thresh, config.crop_nms_thresh)
        found = without_small_regions(found, config.min_mask_region_area, threshold)
    return found


def _in_crop(
    embedded: EmbeddedImage,
    crop: Crop,
    image_hw: tuple[int, int],
    config: EverythingConfig,
    pool: Executor,
) -> Iterator[tuple[MaskSet, int]]:
    """The masks of one batch of clicks after the other, and how many clicks there were."""
    upscaling = Upscaling(embedded.resize, 4 * embedded.features.shape[-1])

    def serialised(candidate: _Candidate) -> MaskSet | None:
        return _serialised(candidate, upscaling, crop, image_hw, config)

    points = build_point_grid(crop, config)
    waiting: deque[tuple[list[Future[MaskSet | None]], int]] = deque()
    overlapping = _OVERLAPPING.get(embedded.features.device.type, _OVERLAPPING_ELSEWHERE)

    def oldest() -> tuple[MaskSet, int]:
        futures, asked = waiting.popleft()
        done = [future.result() for future in futures]
        return MaskSet.joined([one for one in done if one is not None]), asked

    for first in range(0, len(points), config.points_per_batch):
        some = points[first : first + config.points_per_batch]
        answers = _candidates(embedded, some, config)
        waiting.append(([pool.submit(serialised, one) for one in answers], len(some)))
        if len(waiting) > overlapping:
            yield oldest()
    while waiting:
        yield oldest()


@torch.inference_mode()
def _candidates(
    embedded: EmbeddedImage, points: Float64[np.ndarray, "n 2"], config: EverythingConfig
) -> list[_Candidate]:
    """Answers that pass the predicted IoU, click by click, in the model's order."""
    xy = embedded.resize.points_forward(torch.from_numpy(points)).float()
    prompts = Prompts.of_clicks(xy[None, :, None].to(embedded.features.device))
    every = embedded.model.decode(embedded.features, prompts).candidates()
    if config.candidates == "best":
        every = every.best()
    iou = every.iou[0].float()
    above = iou > config.pred_iou_thresh if config.pred_iou_thresh > 0 else torch.ones_like(iou) > 0
    low_res = every.low_res_logits[0][above].float().cpu().numpy()
    of, _ = np.nonzero(above.cpu().numpy())
    scores = iou[above].cpu().numpy()
    return [_Candidate(low_res[i], scores[i], points[of[i]]) for i in range(len(of))]


def _serialised(
    candidate: _Candidate,
    upscaling: Upscaling,
    crop: Crop,
    image_hw: tuple[int, int],
    config: EverythingConfig,
) -> MaskSet | None:
    """The mask as run-lengths; None where it is not stable or ends where the crop does."""
    cut = upscaling.cut(candidate.low_res, config.stability_score_offset)
    if config.stability_score_thresh > 0 and cut.stability < np.float32(
        config.stability_score_thresh
    ):
        return None
    x0, y0 = crop.xyxy[:2]
    rle = encode(_in_frame(cut.mask, crop, image_hw))
    boxes = mask_boxes([rle], empty_at=(x0, y0))
    if is_box_near_crop_edge(boxes, crop.xyxy, image_hw)[0]:
        return None
    return MaskSet(
        (rle,),
        boxes,
        np.array([candidate.iou]),
        np.array([cut.stability]),
        candidate.point_xy[None] + (x0, y0),
        np.array([crop.xywh()], dtype=np.int64),
    )


def _in_frame(
    mask: Bool[np.ndarray, "ch cw"], crop: Crop, image_hw: tuple[int, int]
) -> Bool[np.ndarray, "h w"]:
    """A crop's mask in the whole photo."""
    if mask.shape == image_hw:
        return mask
    x0, y0, x1, y1 = crop.xyxy
    whole = np.zeros(image_hw, dtype=bool)
    whole[y0:y1, x0:x1] = mask
    return whole
