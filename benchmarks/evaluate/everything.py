"""Segment everything, compared with one forward over all clicks; part of benchmarks.evaluate.

The reference is EfficientSAM's notebook: all clicks of a grid in one call of the released decoder
(as in benchmarks.finetune), every candidate's logits at the image's size, and then the filters.
That does not fit into memory at 32 x 32 (25 GB of logits), so both run at 8 x 8 and are reported
per prompt; the encoder's share of a prompt is that of 32 x 32.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from jaxtyping import UInt8
from torchvision.ops import nms

from benchmarks.finetune.released_decoder import released_decode
from benchmarks.harness import Row, alternate, peak_memory_rise
from efficientsam_pl.inference.automask.config import NOTEBOOK, EverythingConfig
from efficientsam_pl.inference.automask.crops import build_point_grid, generate_crop_boxes
from efficientsam_pl.inference.automask.generator import generate_masks
from efficientsam_pl.inference.predictor import EmbeddedImage, Predictor
from efficientsam_pl.models.config import NAMED
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.rle import Rle, boxes_xyxy, encode_many
from efficientsam_pl.structures import Prediction, Prompts

_HEIGHT, _WIDTH = 1080, 1920
_TIMED_SIDE, _SIDE = 8, 32  # points per side of the timed grid, and of the grid it represents
_PASSING = 0.5  # share of the masks at full size that are stable enough to be kept


def rows(quick: bool) -> list[Row]:
    """Measure seconds per prompt, for all candidates and the notebook's setting; peak memory."""
    model, image = _model(), _image()
    embed = partial(Predictor(model).embed, image)
    every = _passing_half(embed(), EverythingConfig(pred_iou_thresh=0.0))
    notebook = _passing_half(embed(), replace(NOTEBOOK, pred_iou_thresh=0.0))
    rounds = 1 if quick else 5
    measured = _prompt_rows("evaluate.everything", "all candidates", model, image, every, rounds)
    if quick:
        return measured
    measured += _prompt_rows(
        "evaluate.everything_notebook", "best of 3", model, image, notebook, rounds
    )
    risen = peak_memory_rise(partial(_whole_image, replace(every, points_per_side=_SIDE)))
    measured.append(
        Row(
            id="evaluate.everything_peak_rise",
            work=f"32 x 32 clicks on {_HEIGHT} x {_WIDTH} pixels, Ti, CPU; no mask filtered by its "
            "predicted IoU",
            value=risen / 1e9,
            unit="GB",
            goal=2.0,
        )
    )
    return measured


def _prompt_rows(
    name: str,
    setting: str,
    model: Segmenter,
    image: UInt8[np.ndarray, "h w 3"],
    config: EverythingConfig,
    rounds: int,
) -> list[Row]:
    config = replace(config, points_per_side=_TIMED_SIDE)
    variants: dict[str, Callable[[], object]] = {
        "embed": lambda: Predictor(model).embed(image),
        "ours": lambda: generate_masks(model, image, config),
        "reference": lambda: unchunked(Predictor(model).embed(image), config),
    }
    taken = alternate(variants, rounds)
    work = (
        f"a click of a 32 x 32 grid on {_HEIGHT} x {_WIDTH} pixels, Ti, CPU, {setting}, none "
        f"filtered by its predicted IoU and {_PASSING:.0%} by stability; reference: one forward "
        "over all clicks and all logits at the image's size. Both run at 8 x 8"
    )

    def a_prompt(variant: str, kind: str) -> float:
        encoder = getattr(taken["embed"], kind)
        rest = getattr(taken[variant], kind) - encoder
        return float(rest / _TIMED_SIDE**2 + encoder / _SIDE**2)

    return [
        Row(
            id=f"{name}_prompt{suffix}",
            work=text,
            value=a_prompt("ours", kind),
            unit="s/prompt",
            reference=a_prompt("reference", kind),
            goal=goal,
        )
        for suffix, kind, text, goal in (
            ("", "wall", work, 0.5),
            ("_processor", "processor", "the same, seconds of all threads together", None),
        )
    ]


@torch.inference_mode()
def unchunked(embedded: EmbeddedImage, config: EverythingConfig) -> Sequence[Rle]:
    """Segment all clicks in one batch at the image's size, as the reference."""
    prediction = _forward(embedded, config)
    if config.candidates == "best":
        prediction = prediction.best()
    logits = embedded.resize.masks_back(prediction.low_res_logits[0]).flatten(0, 1)
    iou = prediction.iou[0].flatten()
    offset = config.stability_score_offset
    surely = (logits > offset).sum(-1, dtype=torch.int16).sum(-1, dtype=torch.int32)
    perhaps = (logits > -offset).sum(-1, dtype=torch.int16).sum(-1, dtype=torch.int32)
    kept = surely / perhaps >= config.stability_score_thresh
    masks, iou = logits[kept] > 0, iou[kept]
    rles = encode_many(masks.numpy())
    boxes = torch.from_numpy(boxes_xyxy(rles)).float()
    return [rles[i] for i in nms(boxes, iou, config.box_nms_thresh).tolist()]


def _forward(embedded: EmbeddedImage, config: EverythingConfig) -> Prediction:
    """Decode all clicks in one call of the released decoder."""
    crop = generate_crop_boxes(embedded.resize.image_hw, 0, 0.0)[0]
    points = embedded.resize.points_forward(
        torch.from_numpy(build_point_grid(crop, config))
    ).float()
    prompts = Prompts.of_clicks(points[None, :, None])
    return released_decode(embedded.model, embedded.features, prompts).candidates()


@torch.inference_mode()
def _passing_half(embedded: EmbeddedImage, config: EverythingConfig) -> EverythingConfig:
    """Adjust the stability threshold so that half of a random model's masks pass.

    As for a trained model, the offset is an eighth of the logits' standard deviation.
    """
    prediction = _forward(embedded, replace(config, points_per_side=_TIMED_SIDE))
    logits = prediction.low_res_logits.flatten(0, 2)
    offset = float(logits.std()) / 8
    scores = (logits > offset).sum((1, 2)) / (logits > -offset).sum((1, 2)).clamp(min=1)
    return replace(
        config,
        stability_score_offset=offset,
        stability_score_thresh=float(scores.quantile(1 - _PASSING)),
    )


def _whole_image(config: EverythingConfig) -> Callable[[], object]:
    model, image = _model(), _image()
    generate_masks(model, image, replace(config, points_per_side=2))
    return partial(generate_masks, model, image, config)


def _model() -> Segmenter:
    """Random, but for what makes logits noisy, so that masks have outlines as objects have."""
    torch.manual_seed(0)
    model = Segmenter(NAMED["efficient_sam_ti"]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("pos_embed"):
                parameter.zero_()
        for layer in model.mask_decoder.upscaling:
            if isinstance(layer, torch.nn.ConvTranspose2d):
                layer.weight.copy_(
                    layer.weight.mean((2, 3), keepdim=True).expand(layer.weight.shape)
                )
    return model


def _image() -> UInt8[np.ndarray, "h w 3"]:
    """Smooth shapes."""
    coarse = np.random.default_rng(0).integers(0, 256, (1, 3, 9, 16)).astype(np.float32)
    smooth = torch.nn.functional.interpolate(
        torch.from_numpy(coarse), (_HEIGHT, _WIDTH), mode="bicubic"
    )
    return smooth.clamp(0, 255).byte()[0].permute(1, 2, 0).contiguous().numpy()
