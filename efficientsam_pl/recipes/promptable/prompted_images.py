"""A few photos and masks, asked in several ways by a segmenter, made ready to be drawn."""

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

MASKS = 3  # drawn of a photo
_SHARED = 0.1  # of a drawn mask may lie in larger ones


def visualized_protocols(
    config: ValidationConfig, side: int, clicks: int
) -> dict[str, PromptSampler]:
    """A tight box, and each number of clicks that is measured, by what stands in the title.

    Args:
        config: What is measured.
        side: Of the model's square, pixels.
        clicks: Points that are drawn in each mask; more of them cannot be shown.
    """
    box = PromptingConfig(box_share=1.0, box_jitter=0.0, max_clicks=1)
    kinds: dict[str, PromptSampler] = {"box": build_prompt_sampler(box, side)}
    corrected = config.later_clicks == "corrections"
    for count in config.clicks:
        asked = PromptingConfig(
            rounds="interactive" if corrected else "each",
            box_share=0.0,
            max_clicks=count,
            corrections=count - 1,
            repeats=0,
        )
        if corrected or count <= clicks:
            kinds[f"{count} click{'s' * (count > 1)}"] = build_prompt_sampler(asked, side)
    return kinds


@dataclass(frozen=True)
class LastRound:
    """A photo's masks of the last round: what was asked, and one answer a prompt."""

    prompts: Prompts
    answer: Prediction


def largest_apart(masks: Bool[Tensor, "q h w"], valid: Bool[Tensor, "q"], most: int) -> list[int]:
    """The largest masks of which at most a tenth lies in a larger one that was chosen."""
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
    """Each photo with the masks to draw; those that have none, as damaged ones, are left out."""
    for i, key in enumerate(batch.key):
        chosen = largest_apart(batch.masks[i], batch.valid[i], MASKS)
        if chosen:
            one = slice(i, i + 1)
            yield replace(
                batch,
                image=batch.image[one],
                content_hw=batch.content_hw[one],
                masks=batch.masks[one, chosen],
                boxes_xyxy_px=batch.boxes_xyxy_px[one, chosen],
                clicks_px=batch.clicks_px[one, chosen],
                valid=batch.valid[one, chosen],
                sample_key=batch.sample_key[one],
                key=(key,),
                corrupt=(),
            )


def predict_all(
    model: Segmenter, kinds: Mapping[str, PromptSampler], photo: MaskBatch
) -> dict[str, LastRound]:
    """Encode an image and prompt for its masks by every sampler; return the last rounds."""
    features = model.encode(photo.image, photo.content_hw)
    return {kind: _last_round(model, sampler, photo, features) for kind, sampler in kinds.items()}


def _last_round(
    model: Segmenter, sampler: PromptSampler, photo: MaskBatch, features: Float[Tensor, "1 c g g"]
) -> LastRound:
    targets = sampler.targets(photo)
    previous: PreviousRound | None = None
    for number in range(sampler.rounds):
        prompts = sampler.sample(targets, number, previous)
        prediction = model.decode(features, prompts).select(sampler.output_tokens(number))
        previous = PreviousRound(prompts, prediction.low_res_logits[:, :, 0])
    return LastRound(prompts, prediction)


def drawable(photo: MaskBatch, kind: str, asked: LastRound) -> ProtocolMasks:
    """What is drawn of a photo's answers, in pixels of the picture."""
    side, low = photo.image.shape[-1], photo.masks.shape[-1]
    height, width = photo.content_hw[0].tolist()
    scale = CELL_PX / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    resize = Resize(size, (height, width), side, "pad")
    logits, truth = asked.answer.low_res_logits[0].float(), photo.masks[0]
    rows, columns = -(-height * low // side), -(-width * low // side)  # that hold some photo
    iou = mask_iou(logits[:, 0, :rows, :columns] > 0, truth[:, :rows, :columns])
    smooth = truth[:, None].float() - 0.5  # as logits are brought to the picture's size
    return ProtocolMasks(
        key=photo.key[0],
        protocol=kind,
        image=_shown(photo.image[0, :, :height, :width], size),
        prompts=tuple(_drawn(asked.prompts, resize)),
        truth=(resize.masks_back(smooth)[:, 0] > 0).cpu().numpy(),
        predicted=(resize.masks_back(logits)[:, 0] > 0).cpu().numpy(),
        iou=tuple(iou.tolist()),
        predicted_iou=tuple(asked.answer.iou[0, :, 0].float().tolist()),
    )


def _shown(
    pixels: UInt8[Tensor, "3 h w"], size_hw: tuple[int, int]
) -> UInt8[np.ndarray, "h2 w2 3"]:
    photo = Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
    return np.array(photo.resize(size_hw[::-1], Image.Resampling.LANCZOS))


def _drawn(prompts: Prompts, resize: Resize) -> Iterator[DrawnPrompt]:
    """A photo's prompts in pixels of its picture; two corners are a box."""
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
