"""Segment everything: prompt a grid of points, predict masks, keep the good ones.

The semantics are those of SAM's automatic mask generator. To save memory, each thread holds only
one mask at the image's size, and only masks that pass the predicted IoU are upscaled.

Axes: n masks, h w pixels of the image, mh mw the decoder's logits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64

from efficientsam_pl.inference.automask.config import EverythingConfig
from efficientsam_pl.inference.automask.crops import Crop, build_point_grid, generate_crop_boxes
from efficientsam_pl.inference.automask.filters import (
    is_box_near_crop_edge,
    mask_boxes,
    postprocess_small_regions,
    suppress_duplicates,
)
from efficientsam_pl.inference.automask.records import MaskRecord, MaskSet
from efficientsam_pl.inference.automask.upscaling import Upscaling
from efficientsam_pl.inference.predictor import EmbeddedImage, Predictor, image_pixels
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.rle import encode
from efficientsam_pl.structures import Prompts

# Batches that are postprocessed while the next is decoded. On a CPU none: the decoder's threads
# would compete with the postprocessing for cores
_OVERLAPPING = {"cpu": 0}
_OVERLAPPING_ELSEWHERE = 1


@dataclass(frozen=True)
class _Candidate:
    """A predicted low-resolution mask of one click."""

    low_res: Float[np.ndarray, "mh mw"]
    iou: np.float32
    point_xy: Float64[np.ndarray, "2"]  # in the crop


def generate_masks(
    model: Segmenter,
    image: object,
    config: EverythingConfig | None = None,
    advance: Callable[[float], None] | None = None,
) -> list[MaskRecord]:
    """Generate masks of everything in an image, as SAM's generator returns them.

    Masks are sorted by falling predicted IoU, or, with crops or small regions, in the order of the
    last NMS. A stability score is 0 where SAM's is NaN, for a mask that is empty at both
    thresholds.

    Args:
        model: The segmenter, which runs on its current device.
        image: As `Predictor.embed` takes it.
        config: Grid and thresholds; None: SAM's defaults.
        advance: Progress callback; receives increments of the completed share, which sum to 1.

    Raises:
        PromptError: `image` is none that `Predictor.embed` takes.
    """
    config = config or EverythingConfig()
    predictor = Predictor(model)
    pixels = image_pixels(image)
    image_hw = (pixels.shape[0], pixels.shape[1])
    crops = generate_crop_boxes(image_hw, config.crop_n_layers, config.crop_overlap_ratio)
    total_points = sum(config.points_in_layer(crop.layer) ** 2 for crop in crops)
    masks_of_crops = []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for crop in crops:
            x0, y0, x1, y1 = crop.xyxy
            embedded = predictor.embed(np.ascontiguousarray(pixels[y0:y1, x0:x1]))
            batches = []
            for batch, points in _process_crop(embedded, crop, image_hw, config, pool):
                batches.append(batch)
                if advance is not None:
                    advance(points / total_points)
            masks = MaskSet.cat(batches)
            if config.suppression == "each_crop":
                masks = suppress_duplicates(masks, masks.iou, config.box_nms_thresh)
            masks_of_crops.append(masks)
    return _merge_crops(masks_of_crops, config).records()


def _merge_crops(masks_of_crops: list[MaskSet], config: EverythingConfig) -> MaskSet:
    masks = MaskSet.cat(masks_of_crops)
    if len(masks_of_crops) > 1:
        scores = 1 / masks.crops_xywh[:, 2:].prod(axis=1).astype(np.float32)
        masks = suppress_duplicates(masks, scores, config.crop_nms_thresh)
    if config.min_mask_region_area > 0:
        threshold = max(config.box_nms_thresh, config.crop_nms_thresh)
        masks = postprocess_small_regions(masks, config.min_mask_region_area, threshold)
    return masks


def _process_crop(
    embedded: EmbeddedImage,
    crop: Crop,
    image_hw: tuple[int, int],
    config: EverythingConfig,
    pool: Executor,
) -> Iterator[tuple[MaskSet, int]]:
    """Yield the masks of each batch of points with the number of points."""
    upscaling = Upscaling(embedded.resize, 4 * embedded.features.shape[-1])

    def postprocess(candidate: _Candidate) -> MaskSet | None:
        return _postprocess(candidate, upscaling, crop, image_hw, config)

    points = build_point_grid(crop, config)
    pending: deque[tuple[list[Future[MaskSet | None]], int]] = deque()
    overlapping = _OVERLAPPING.get(embedded.features.device.type, _OVERLAPPING_ELSEWHERE)

    def oldest() -> tuple[MaskSet, int]:
        futures, count = pending.popleft()
        results = [future.result() for future in futures]
        return MaskSet.cat([masks for masks in results if masks is not None]), count

    for first in range(0, len(points), config.points_per_batch):
        batch = points[first : first + config.points_per_batch]
        candidates = _predict_batch(embedded, batch, config)
        pending.append(([pool.submit(postprocess, mask) for mask in candidates], len(batch)))
        if len(pending) > overlapping:
            yield oldest()
    while pending:
        yield oldest()


@torch.inference_mode()
def _predict_batch(
    embedded: EmbeddedImage, points: Float64[np.ndarray, "n 2"], config: EverythingConfig
) -> list[_Candidate]:
    """Predict the masks that pass the predicted IoU, click by click, in the model's order."""
    xy = embedded.resize.points_forward(torch.from_numpy(points)).float()
    prompts = Prompts.of_clicks(xy[None, :, None].to(embedded.features.device))
    every = embedded.decode(prompts).candidates()
    if config.candidates == "best":
        every = every.best()
    iou = every.iou[0].float()
    above = iou > config.pred_iou_thresh if config.pred_iou_thresh > 0 else torch.ones_like(iou) > 0
    low_res = every.low_res_logits[0][above].float().cpu().numpy()
    click, _ = np.nonzero(above.cpu().numpy())
    scores = iou[above].cpu().numpy()
    return [_Candidate(low_res[i], scores[i], points[click[i]]) for i in range(len(click))]


def _postprocess(
    candidate: _Candidate,
    upscaling: Upscaling,
    crop: Crop,
    image_hw: tuple[int, int],
    config: EverythingConfig,
) -> MaskSet | None:
    """Upscale and encode a mask; None if it is unstable or near the crop's edge."""
    upscaled = upscaling.threshold(candidate.low_res, config.stability_score_offset)
    if config.stability_score_thresh > 0 and upscaled.stability < np.float32(
        config.stability_score_thresh
    ):
        return None
    x0, y0 = crop.xyxy[:2]
    rle = encode(_uncrop_mask(upscaled.mask, crop, image_hw))
    boxes = mask_boxes([rle], empty_at=(x0, y0))
    if is_box_near_crop_edge(boxes, crop.xyxy, image_hw)[0]:
        return None
    return MaskSet(
        (rle,),
        boxes,
        np.array([candidate.iou]),
        np.array([upscaled.stability]),
        candidate.point_xy[None] + (x0, y0),
        np.array([crop.xywh()], dtype=np.int64),
    )


def _uncrop_mask(
    mask: Bool[np.ndarray, "ch cw"], crop: Crop, image_hw: tuple[int, int]
) -> Bool[np.ndarray, "h w"]:
    """Place a crop's mask in the whole image."""
    if mask.shape == image_hw:
        return mask
    x0, y0, x1, y1 = crop.xyxy
    whole = np.zeros(image_hw, dtype=bool)
    whole[y0:y1, x0:x1] = mask
    return whole
