"""The region proposal network: scores and moves anchors, and keeps the best (Faster R-CNN).

Axes: b images, c channels, n anchors of all levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms

from efficientsam_pl.models.detection.anchors import pyramid_anchors
from efficientsam_pl.models.detection.config import ANCHOR_RATIOS, ProposalConfig

ANCHOR_CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))
_STD = 0.01


class ProposalHead(nn.Module):
    """Two 3x3 convolutions, then objectness and deltas of the anchors of each place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        anchors = len(ANCHOR_RATIOS)
        self.conv0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness_logits = nn.Conv2d(channels, anchors, 1)
        self.anchor_deltas = nn.Conv2d(channels, 4 * anchors, 1)
        for layer in self.children():
            assert isinstance(layer, nn.Conv2d), "all layers are convolutions"
            nn.init.normal_(layer.weight, std=_STD)
            assert layer.bias is not None, "they have biases"
            nn.init.zeros_(layer.bias)

    def forward(
        self, features: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b a h w"], Float[Tensor, "b a4 h w"]]:
        """Return objectness and deltas; those of an anchor follow each other."""
        hidden = F.relu(self.conv1(F.relu(self.conv0(features))))
        return self.objectness_logits(hidden), self.anchor_deltas(hidden)


@dataclass(frozen=True)
class AnchorPredictions:
    """Predictions for all anchors, level after level; `per_level` counts those of each."""

    anchors: Float[Tensor, "n 4"]
    logits: Float[Tensor, "b n"]
    deltas: Float[Tensor, "b n 4"]
    per_level: tuple[int, ...]


def predict_anchors(head: ProposalHead, maps: Sequence[Tensor]) -> AnchorPredictions:
    """Run the head on every level; results are float32."""
    grids = [(level.shape[-2], level.shape[-1]) for level in maps]
    anchors = pyramid_anchors(grids, maps[0].device)
    outputs = [head(level) for level in maps]
    logits = [logits.permute(0, 2, 3, 1).flatten(1) for logits, _ in outputs]
    deltas = [
        deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for _, deltas in outputs
    ]
    return AnchorPredictions(
        torch.cat(anchors),
        torch.cat(logits, dim=1).float(),
        torch.cat(deltas, dim=1).float(),
        tuple(len(level) for level in anchors),
    )


@torch.no_grad()
def propose(
    predictions: AnchorPredictions,
    content_hw: Int64[Tensor, "b 2"],
    config: ProposalConfig,
    before_nms: int,
) -> list[Float[Tensor, "_ 4"]]:
    """Select each image's proposals, the best first; at most `config.kept` boxes in pixels.

    Args:
        predictions: Those of all anchors.
        content_hw: Part of the frames that is image, to which boxes are clipped.
        config: Limits.
        before_nms: The highest anchors of a level and image that are looked at.
    """
    index, levels, first = [], [], 0
    for number, count in enumerate(predictions.per_level):
        logits = predictions.logits[:, first : first + count]
        best = logits.topk(min(before_nms, count), dim=1).indices + first
        index.append(best)
        levels.append(torch.full_like(best[0], number))
        first += count
    chosen, level = torch.cat(index, dim=1), torch.cat(levels)
    logits = predictions.logits.gather(1, chosen)
    deltas = predictions.deltas.gather(1, chosen[..., None].expand(-1, -1, 4))
    anchors = predictions.anchors[chosen]
    boxes = ANCHOR_CODER.decode_single(deltas.flatten(0, 1), anchors.flatten(0, 1))
    clipped = clip_boxes(boxes.view_as(deltas), content_hw[:, None])
    return [
        _suppress(image, scores, level, config)
        for image, scores in zip(clipped, logits, strict=True)
    ]


def _suppress(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, "n"],
    level: Int64[Tensor, "n"],
    config: ProposalConfig,
) -> Float[Tensor, "_ 4"]:
    filled = is_filled(boxes) & scores.isfinite()
    boxes, scores, level = boxes[filled], scores[filled], level[filled]
    return boxes[batched_nms(boxes, scores, level, config.nms_iou)[: config.kept]]


def clip_boxes(
    boxes: Float[Tensor, "*boxes 4"], content_hw: Int64[Tensor, "*#boxes 2"]
) -> Float[Tensor, "*boxes 4"]:
    """Clip boxes to the part of a frame that is image."""
    limit = content_hw.flip(-1).repeat_interleave(2, dim=-1)[..., [0, 2, 1, 3]].to(boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limit)


def is_filled(boxes: Float[Tensor, "n 4"]) -> Tensor:
    """Tell which boxes have an area."""
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
