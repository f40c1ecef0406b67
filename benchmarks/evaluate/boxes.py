"""A detector's boxes to chosen run-lengths, beside what public scripts do.

A part of benchmarks.evaluate.
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
    """Time of a photo's boxes by the paper's rule and by predicted IoU, and what differs."""
    boxes, rounds = (12, 1) if quick else (_BOXES, 5)
    return [
        row
        for rule in ("box_iou", "predicted_iou")
        for row in rule_rows(NAMED["efficient_sam_s"], rule, boxes, rounds)
    ]


def rule_rows(config: SegmenterConfig, rule: MaskRule, boxes: int, rounds: int) -> list[Row]:
    """One rule; random weights, for which the candidates are as rough as they ever get.

    Args:
        config: EfficientSAM's layout, of any size.
        rule: Which candidate is kept.
        boxes: Of one photo.
        rounds: How often each way is timed.
    """
    segmenter, photo = prepared(config)
    detected = drawn_boxes(boxes)
    ways = {
        "ours": partial(ours, segmenter, photo, detected, rule),
        "scripts": partial(one_by_one, photo.embedded, detected, rule),
    }
    taken, kept = _kept(ways, rounds)
    pixels = _IMAGE_HW[0] * _IMAGE_HW[1]
    apart = max(
        int((decode(one) ^ decode(other)).sum()) / pixels
        for one, other in zip(kept["ours"], kept["scripts"], strict=True)
    )
    name = f"evaluate.detector_boxes_{rule}"
    return [
        *timed_rows(
            (name, f"{name}_processor_time"),
            f"{boxes} boxes of a photo of {_IMAGE_HW[1]}x{_IMAGE_HW[0]} to chosen run-lengths by "
            f"{rule}, S decoder at {config.encoder.image_size}, float32; median of {rounds} "
            "rounds; reference: a call of the released decoder a box, all candidates at full size, "
            "pycocotools",
            taken["ours"],
            taken["scripts"],
            goal=1 / 1.5,
        ),
        Row(
            id=f"{name}_differing",
            work="largest share of a photo's pixels on which a chosen mask differs",
            value=apart,
            unit="",
            goal=1e-3,
        ),
    ]


def prepared(config: SegmenterConfig) -> tuple[EvaluatorModel, EvaluatorImage]:
    """Seeded weights and features."""
    torch.manual_seed(0)
    segmenter = EvaluatorModel(Segmenter(config).eval())
    grid = config.encoder.grid()
    resize = Resize.fit(_IMAGE_HW, config.encoder.image_size, config.resize)
    features = torch.randn(1, config.encoder.neck_channels, grid, grid)
    return segmenter, segmenter.embedded(features, resize)


def drawn_boxes(count: int) -> list[DetectedBox]:
    """Boxes of all sizes, none twice."""
    draw = np.random.default_rng(0)
    corners = np.sort(draw.uniform(0, np.array(_IMAGE_HW[::-1])[:, None], (count, 2, 2)), axis=2)
    edges = corners.transpose(0, 2, 1).reshape(count, 4)
    return [DetectedBox(1, (x0, y0, x1, y1), 1.0) for x0, y0, x1, y1 in edges.tolist()]


def ours(
    segmenter: EvaluatorModel, photo: EvaluatorImage, boxes: list[DetectedBox], rule: MaskRule
) -> list[Rle]:
    """Through the protocol."""
    context = EvalContext(model=segmenter, image=photo, key="0", prompts_at_once=len(boxes))
    return [one.mask for one in DetectorBoxes(rule=rule).predict(context, boxes, _IMAGE_HW)]


@torch.inference_mode()
def one_by_one(embedded: EmbeddedImage, boxes: list[DetectedBox], rule: MaskRule) -> list[Rle]:
    """A call of the released decoder a box; all candidates at full size, then one is kept."""
    found: list[Rle] = []
    for one in boxes:
        corners = embedded.resize.boxes_forward(torch.tensor([[one.box_xyxy]]))
        prompts = Prompts.of_boxes(corners)
        answer = released_decode(embedded.model, embedded.features, prompts).candidates()
        masks = (embedded.resize.masks_back(answer.low_res_logits[0])[0] > 0).numpy()
        encoded = [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
        scores = answer.iou[0, 0].numpy()
        if rule == "box_iou":
            x0, y0, x1, y1 = (int(np.ceil(edge - 0.5)) for edge in one.box_xyxy)
            box = np.zeros(_IMAGE_HW, dtype=bool)
            box[y0:y1, x0:x1] = True
            scores = (masks & box).sum((1, 2)) / (masks | box).sum((1, 2))
        kept = encoded[int(scores.argmax())]
        found.append(Rle(size=list(_IMAGE_HW), counts=kept["counts"].decode()))
    return found


def _kept(
    ways: Mapping[str, Callable[[], list[Rle]]], rounds: int
) -> tuple[dict[str, Taken], dict[str, list[Rle]]]:
    """Medians, and the masks of the last round."""
    kept: dict[str, list[Rle]] = {}

    def keep(name: str) -> None:
        kept[name] = ways[name]()

    return alternate({name: partial(keep, name) for name in ways}, rounds), kept
