"""Masks of a detector's boxes as run-lengths, compared with public scripts.

Part of benchmarks.evaluate.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from pycocotools import mask as coco_mask

from benchmarks.finetune.released_decoder import released_decode
from benchmarks.harness import Row, Taken, alternate, timed_rows
from efficientsam_pl.evaluation.protocols.base import EvalContext
from efficientsam_pl.evaluation.protocols.detector_boxes import DetectorBoxes, MaskRule
from efficientsam_pl.geometry import Resize
from efficientsam_pl.inference.evaluator_adapter import EvaluatorImage, EvaluatorModel
from efficientsam_pl.inference.predictor import EmbeddedImage
from efficientsam_pl.models.config import NAMED, SegmenterConfig
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.rle import Rle, decode
from efficientsam_pl.structures import Prompts

_IMAGE_HW = (480, 640)
_BOXES = 60


@dataclass(frozen=True)
class DetectedBox:
    """Edges in image pixels."""

    category_id: int
    box_xyxy: tuple[float, float, float, float]
    score: float


def rows(quick: bool) -> list[Row]:
    """Compare the boxes of an image by the paper's rule and by predicted IoU."""
    boxes, rounds = (12, 1) if quick else (_BOXES, 5)
    return [
        row
        for rule in ("box_iou", "predicted_iou")
        for row in rule_rows(NAMED["efficient_sam_s"], rule, boxes, rounds)
    ]


def rule_rows(config: SegmenterConfig, rule: MaskRule, boxes: int, rounds: int) -> list[Row]:
    """Compare one rule, with random weights, which give the most irregular masks.

    Args:
        config: EfficientSAM's layout, of any size.
        rule: Selects the candidate.
        boxes: Number of boxes.
        rounds: Number of rounds.
    """
    segmenter, image = prepared(config)
    detected = drawn_boxes(boxes)
    ways = {
        "ours": partial(ours, segmenter, image, detected, rule),
        "scripts": partial(one_by_one, image.embedded, detected, rule),
    }
    taken, kept = _kept(ways, rounds)
    pixels = _IMAGE_HW[0] * _IMAGE_HW[1]
    apart = max(
        int((decode(mask) ^ decode(other)).sum()) / pixels
        for mask, other in zip(kept["ours"], kept["scripts"], strict=True)
    )
    name = f"evaluate.detector_boxes_{rule}"
    return [
        *timed_rows(
            (name, f"{name}_processor_time"),
            f"{boxes} boxes of an image of {_IMAGE_HW[1]}x{_IMAGE_HW[0]} to chosen run-lengths by "
            f"{rule}, S decoder at {config.encoder.image_size}, float32; median of {rounds} "
            "rounds; reference: a call of the released decoder a box, all candidates at full size, "
            "pycocotools",
            taken["ours"],
            taken["scripts"],
            goal=1 / 1.5,
        ),
        Row(
            id=f"{name}_differing",
            work="largest share of an image's pixels on which a chosen mask differs",
            value=apart,
            unit="",
            goal=1e-3,
        ),
    ]


def prepared(config: SegmenterConfig) -> tuple[EvaluatorModel, EvaluatorImage]:
    """Create a model with seeded weights, and seeded features."""
    torch.manual_seed(0)
    segmenter = EvaluatorModel(Segmenter(config).eval())
    grid = config.encoder.grid()
    resize = Resize.fit(_IMAGE_HW, config.encoder.image_size, config.resize)
    features = torch.randn(1, config.encoder.neck_channels, grid, grid)
    return segmenter, segmenter.embedded(features, resize)


def drawn_boxes(count: int) -> list[DetectedBox]:
    """Draw distinct boxes of all sizes."""
    draw = np.random.default_rng(0)
    corners = np.sort(draw.uniform(0, np.array(_IMAGE_HW[::-1])[:, None], (count, 2, 2)), axis=2)
    edges = corners.transpose(0, 2, 1).reshape(count, 4)
    return [DetectedBox(1, (x0, y0, x1, y1), 1.0) for x0, y0, x1, y1 in edges.tolist()]


def ours(
    segmenter: EvaluatorModel, image: EvaluatorImage, boxes: list[DetectedBox], rule: MaskRule
) -> list[Rle]:
    """Predict by the protocol."""
    context = EvalContext(model=segmenter, image=image, key="0", prompts_at_once=len(boxes))
    results = DetectorBoxes(rule=rule).predict(context, boxes, _IMAGE_HW)
    return [result.mask for result in results]


@torch.inference_mode()
def one_by_one(embedded: EmbeddedImage, boxes: list[DetectedBox], rule: MaskRule) -> list[Rle]:
    """Call the released decoder per box, resize all candidates, then keep one."""
    chosen: list[Rle] = []
    for box in boxes:
        corners = embedded.resize.boxes_forward(torch.tensor([[box.box_xyxy]]))
        prompts = Prompts.of_boxes(corners)
        candidates = released_decode(embedded.model, embedded.features, prompts).candidates()
        masks = (embedded.resize.masks_back(candidates.low_res_logits[0])[0] > 0).numpy()
        encoded = [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
        scores = candidates.iou[0, 0].numpy()
        if rule == "box_iou":
            x0, y0, x1, y1 = (int(np.ceil(edge - 0.5)) for edge in box.box_xyxy)
            filled = np.zeros(_IMAGE_HW, dtype=bool)
            filled[y0:y1, x0:x1] = True
            scores = (masks & filled).sum((1, 2)) / (masks | filled).sum((1, 2))
        kept = encoded[int(scores.argmax())]
        chosen.append(Rle(size=list(_IMAGE_HW), counts=kept["counts"].decode()))
    return chosen


def _kept(
    ways: Mapping[str, Callable[[], list[Rle]]], rounds: int
) -> tuple[dict[str, Taken], dict[str, list[Rle]]]:
    """Time the variants; medians, and the masks of the last round."""
    kept: dict[str, list[Rle]] = {}

    def keep(name: str) -> None:
        kept[name] = ways[name]()

    return alternate({name: partial(keep, name) for name in ways}, rounds), kept
