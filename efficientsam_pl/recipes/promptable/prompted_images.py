"""Prompt a segmenter for the masks of a few images by several protocols, for visualization."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from efficientsam_pl.evaluation.config import ValidationConfig
from efficientsam_pl.geometry import Resize
from efficientsam_pl.mask_overlap import mask_iou
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.prompts.config import PromptingConfig
from efficientsam_pl.prompts.samplers import build_prompt_sampler
from efficientsam_pl.structures import (
    Label,
    MaskBatch,
    Prediction,
    PreviousRound,
    Prompts,
    PromptSampler,
)
from efficientsam_pl.visualization.masks import CELL_PX, ProtocolMasks
from efficientsam_pl.visualization.overlay import DrawnPrompt

MASKS = 3  # drawn per image
_SHARED = 0.1  # largest fraction of a drawn mask that larger ones may cover


def visualized_protocols(
    config: ValidationConfig, side: int, clicks: int
) -> dict[str, PromptSampler]:
    """Build a prompt sampler per visualized protocol, by title: a tight box and click counts.

    Args:
        config: Validation protocols.
        side: Side of the model's square input, in pixels.
        clicks: Clicks sampled per mask; without corrections larger counts are left out.
    """
    box = PromptingConfig(box_share=1.0, box_jitter=0.0, max_clicks=1)
    kinds: dict[str, PromptSampler] = {"box": build_prompt_sampler(box, side)}
    corrected = config.later_clicks == "corrections"
    for count in config.clicks:
        prompting = PromptingConfig(
            rounds="interactive" if corrected else "each",
            box_share=0.0,
            max_clicks=count,
            corrections=count - 1,
            repeats=0,
        )
        if corrected or count <= clicks:
            kinds[f"{count} click{'s' * (count > 1)}"] = build_prompt_sampler(prompting, side)
    return kinds


@dataclass(frozen=True)
class LastRound:
    """Prompts of the last round and the prediction, one mask per prompt, for an image."""

    prompts: Prompts
    prediction: Prediction


def largest_apart(masks: Bool[Tensor, "q h w"], valid: Bool[Tensor, "q"], most: int) -> list[int]:
    """Choose the largest masks of which at most a tenth lies in larger chosen ones."""
    areas = masks.flatten(1).sum(1)
    taken = torch.zeros_like(masks[0]) if len(masks) else None
    chosen: list[int] = []
    for i in areas.argsort(descending=True, stable=True).tolist():
        if len(chosen) == most or taken is None:
            break
        if valid[i] and areas[i] > 0 and (masks[i] & taken).sum() <= _SHARED * areas[i]:
            chosen.append(i)
            taken = taken | masks[i]
    return chosen


def one_by_one(batch: MaskBatch) -> Iterator[MaskBatch]:
    """Split a batch into single images with the masks to draw; skip images without any."""
    for i, key in enumerate(batch.key):
        chosen = largest_apart(batch.masks[i], batch.valid[i], MASKS)
        if chosen:
            row = slice(i, i + 1)
            yield replace(
                batch,
                image=batch.image[row],
                content_hw=batch.content_hw[row],
                masks=batch.masks[row, chosen],
                boxes_xyxy_px=batch.boxes_xyxy_px[row, chosen],
                clicks_px=batch.clicks_px[row, chosen],
                valid=batch.valid[row, chosen],
                sample_key=batch.sample_key[row],
                key=(key,),
                corrupt=(),
            )


def predict_all(
    model: Segmenter, kinds: Mapping[str, PromptSampler], image: MaskBatch
) -> dict[str, LastRound]:
    """Encode an image and prompt for its masks by every sampler; return the last rounds."""
    features = model.encode(image.image, image.content_hw)
    return {kind: _last_round(model, sampler, image, features) for kind, sampler in kinds.items()}


def _last_round(
    model: Segmenter, sampler: PromptSampler, image: MaskBatch, features: Float[Tensor, "1 c g g"]
) -> LastRound:
    targets = sampler.targets(image)
    previous: PreviousRound | None = None
    for number in range(sampler.rounds):
        prompts = sampler.sample(targets, number, previous)
        prediction = model.decode(features, prompts).select(sampler.output_tokens(number))
        previous = PreviousRound(prompts, prediction.low_res_logits[:, :, 0])
    return LastRound(prompts, prediction)


def drawable(image: MaskBatch, kind: str, last: LastRound) -> ProtocolMasks:
    """Convert an image's last round to masks and prompts in pixels of the visualization."""
    side, low = image.image.shape[-1], image.masks.shape[-1]
    height, width = image.content_hw[0].tolist()
    scale = CELL_PX / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    resize = Resize(size, (height, width), side, "pad")
    logits, truth = last.prediction.low_res_logits[0].float(), image.masks[0]
    rows, columns = -(-height * low // side), -(-width * low // side)  # not all padding
    iou = mask_iou(logits[:, 0, :rows, :columns] > 0, truth[:, :rows, :columns])
    smooth = truth[:, None].float() - 0.5  # resized like logits
    return ProtocolMasks(
        key=image.key[0],
        protocol=kind,
        image=_shown(image.image[0, :, :height, :width], size),
        prompts=tuple(_drawn(last.prompts, resize)),
        truth=(resize.masks_back(smooth)[:, 0] > 0).cpu().numpy(),
        predicted=(resize.masks_back(logits)[:, 0] > 0).cpu().numpy(),
        iou=tuple(iou.tolist()),
        predicted_iou=tuple(last.prediction.iou[0, :, 0].float().tolist()),
    )


def _shown(
    pixels: UInt8[Tensor, "3 h w"], size_hw: tuple[int, int]
) -> UInt8[np.ndarray, "h2 w2 3"]:
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
    return np.array(image.resize(size_hw[::-1], Image.Resampling.LANCZOS))


def _drawn(prompts: Prompts, resize: Resize) -> Iterator[DrawnPrompt]:
    """Yield an image's prompts in pixels of the visualization; two corners make a box."""
    boxes = prompts.boxes_xyxy_px
    framed = None if boxes is None else resize.boxes_back(boxes[0].float()).tolist()
    points = resize.points_back(prompts.points_px[0].float()).tolist()
    for i, labels in enumerate(prompts.labels[0].tolist()):
        of = {
            kind: [point for point, label in zip(points[i], labels, strict=True) if label == kind]
            for kind in Label
        }
        box = None if framed is None else framed[i]
        if of[Label.TOP_LEFT]:
            box = [*of[Label.TOP_LEFT][0], *of[Label.BOTTOM_RIGHT][0]]
        clicks = [
            (tuple(point), kind) for kind in (Label.POSITIVE, Label.NEGATIVE) for point in of[kind]
        ]
        yield DrawnPrompt(
            points_xy=tuple(point for point, _ in clicks),
            labels=tuple(int(kind) for _, kind in clicks),
            box_xyxy=None if box is None else tuple(box),
        )
