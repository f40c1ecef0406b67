"""Mask R-CNN on a plain ViT: boxes, masks and classes of objects (ViTDet).

Axes: b images, s pixels a side, d blocks, k classes; a sampled anchors, r sampled regions, f
foreground regions, all images one after another; m places a side of a mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms

from efficientsam_pl.models.detection.config import DetectorConfig
from efficientsam_pl.models.detection.heads import BoxHead, MaskHead
from efficientsam_pl.models.detection.pooling import pool_regions
from efficientsam_pl.models.detection.proposals import (
    ANCHOR_CODER,
    AnchorPredictions,
    ProposalHead,
    clip_boxes,
    is_filled,
    predict_anchors,
    propose,
)
from efficientsam_pl.models.detection.pyramid import SimpleFeaturePyramid
from efficientsam_pl.models.detection.targets import (
    ObjectTargets,
    mask_targets,
    match_anchors,
    match_regions,
    sample_matches,
)
from efficientsam_pl.models.drop_path import branch_scales
from efficientsam_pl.models.segmenter import PixelNorm
from efficientsam_pl.models.vit import PlainViT
from efficientsam_pl.structures import Detections, Region

REGION_CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))


@dataclass(frozen=True)
class SampledAnchors:
    """Anchors that are trained on; targets of background are meaningless."""

    image: Int64[Tensor, "a"]
    logits: Float[Tensor, "a"]
    deltas: Float[Tensor, "a 4"]
    foreground: Bool[Tensor, "a"]
    target_deltas: Float[Tensor, "a 4"]


@dataclass(frozen=True)
class SampledRegions:
    """Regions that are trained on, with the deltas and masks of the foreground's classes.

    `foreground` is the index of the foreground among all; class k is background.
    """

    image: Int64[Tensor, "r"]
    logits: Float[Tensor, "r k1"]
    classes: Int64[Tensor, "r"]
    foreground: Int64[Tensor, "f"]
    deltas: Float[Tensor, "f 4"]
    target_deltas: Float[Tensor, "f 4"]
    mask_logits: Float[Tensor, "f m m"]
    target_masks: Bool[Tensor, "f m m"]


@dataclass(frozen=True)
class _Regions:
    """Sampled regions of one image, with their objects."""

    boxes: Float[Tensor, "r 4"]
    matches: Int64[Tensor, "r"]


class DetectorEncoder(nn.Module):
    """The backbone, under the names that encoders have in this project's files."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.trunk = PlainViT(config.vit)


class Detector(nn.Module):
    """Proposes regions on a pyramid of a plain ViT, classifies them, and draws their masks.

    It has methods instead of `forward`: FSDP2 would let go of the heads' weights after it.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.pixel_norm = PixelNorm(config.pixel_mean, config.pixel_std)
        self.image_encoder = DetectorEncoder(config)
        self.pyramid = SimpleFeaturePyramid(config.vit.width, config.channels)
        self.rpn_head = ProposalHead(config.channels)
        regions = config.regions
        self.box_head = BoxHead(config.channels, regions.box_pool, regions.fc_width, config.classes)
        self.mask_head = MaskHead(config.channels, config.classes)

    def encode(
        self,
        image: UInt8[Tensor, "b 3 s s"],
        content_hw: Int64[Tensor, "b 2"],
        sample_key: Int64[Tensor, "b"] | None = None,
    ) -> tuple[list[Tensor], AnchorPredictions]:
        """Compute the pyramid's maps and the predictions for all anchors.

        Args:
            image: Frames with the image at the top left, values 0..255.
            content_hw: Part that is image; the rest becomes zeros after normalisation.
            sample_key: Keys of the draws of drop path, which is off without them and in eval mode.
        """
        scales = None
        if self.training and self.config.drop_path and sample_key is not None:
            scales = branch_scales(sample_key, self.config.drop_path, self.config.vit.depth)
        return self.dense(self.pixel_norm(image, content_hw), scales)

    def dense(
        self, pixels: Float[Tensor, "b 3 h w"], scales: Float[Tensor, "b d 2"] | None = None
    ) -> tuple[list[Tensor], AnchorPredictions]:
        """Compute maps and predictions of normalised images."""
        maps: list[Tensor] = self.pyramid(self.feature_map(pixels, scales))
        return maps, predict_anchors(self.rpn_head, maps)

    def feature_map(
        self, pixels: Float[Tensor, "b 3 h w"], scales: Float[Tensor, "b d 2"] | None = None
    ) -> Float[Tensor, "b c gh gw"]:
        """Return the last block's output as a map at stride 16."""
        patch = self.config.vit.patch_size
        rows, columns = (side // patch for side in pixels.shape[-2:])
        tokens: Tensor = self.image_encoder.trunk(pixels, scales=scales)
        features: Tensor = tokens.transpose(1, 2).unflatten(2, (rows, columns))
        return features

    def sample_anchors(
        self,
        anchors: AnchorPredictions,
        objects: Sequence[ObjectTargets],
        sample_key: Int64[Tensor, "b"],
        valid: Bool[Tensor, "b"],
    ) -> SampledAnchors:
        """Draw the anchors that are trained on; images that are not valid have none."""
        config = self.config.proposals
        parts = []
        for number, (truth, key, real) in enumerate(
            zip(objects, sample_key, valid.tolist(), strict=True)
        ):
            if not real:
                continue
            matches = match_anchors(
                anchors.anchors, truth, config.foreground_iou, config.background_iou
            )
            index = sample_matches(
                matches, key, config.sampled, config.foreground_fraction, "sampled-anchors"
            )
            chosen = matches[index]
            parts.append(
                (
                    torch.full_like(index, number),
                    anchors.logits[number, index],
                    anchors.deltas[number, index],
                    chosen >= 0,
                    _target_deltas(ANCHOR_CODER, truth, chosen, anchors.anchors[index]),
                )
            )
        if not parts:
            none = torch.zeros(0, dtype=torch.long, device=valid.device)
            logits, deltas = anchors.logits[0, none], anchors.deltas[0, none]
            return SampledAnchors(none, logits, deltas, none.bool(), deltas.detach())
        return SampledAnchors(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def sample_regions(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[Float[Tensor, "_ 4"]],
        objects: Sequence[ObjectTargets],
        sample_key: Int64[Tensor, "b"],
        valid: Bool[Tensor, "b"],
    ) -> SampledRegions:
        """Draw the regions that are trained on, ground labels among them, and run the heads."""
        config, classes = self.config.regions, self.config.classes
        drawn = [
            self._draw_regions(boxes, truth, key if real else None)
            for boxes, truth, key, real in zip(
                proposals, objects, sample_key, valid.tolist(), strict=True
            )
        ]
        logits, deltas = self.box_head(
            pool_regions(maps, [regions.boxes for regions in drawn], config.box_pool)
        )
        pairs = list(zip(drawn, objects, strict=True))
        labels = torch.cat([_classes(truth, r.matches, classes) for r, truth in pairs])
        targets = torch.cat(
            [_target_deltas(REGION_CODER, truth, r.matches, r.boxes) for r, truth in pairs]
        )
        [foreground] = torch.where(labels < classes)
        inside_labels = labels[foreground]
        inside = [(r.boxes[r.matches >= 0], r.matches[r.matches >= 0]) for r in drawn]
        mask_logits = self.mask_head.of_classes(
            pool_regions(maps, [boxes for boxes, _ in inside], config.mask_pool), inside_labels
        )
        masks = [
            mask_targets(truth.masks, matches, boxes, 2 * config.mask_pool)
            for (boxes, matches), truth in zip(inside, objects, strict=True)
        ]
        image = [torch.full_like(r.matches, number) for number, r in enumerate(drawn)]
        return SampledRegions(
            image=torch.cat(image),
            logits=logits,
            classes=labels,
            foreground=foreground,
            deltas=deltas[foreground, inside_labels],
            target_deltas=targets[foreground],
            mask_logits=mask_logits,
            target_masks=torch.cat(masks),
        )

    @torch.no_grad()
    def _draw_regions(
        self,
        proposals: Float[Tensor, "_ 4"],
        objects: ObjectTargets,
        key: Int64[Tensor, ""] | None,
    ) -> _Regions:
        config = self.config.regions
        if key is None:
            none = torch.zeros(0, dtype=torch.long, device=proposals.device)
            return _Regions(proposals[:0], none)
        boxes = torch.cat([proposals, objects.boxes_xyxy_px])
        matches = match_regions(boxes, objects, config.foreground_iou)
        index = sample_matches(
            matches, key, config.sampled, config.foreground_fraction, "sampled-regions"
        )
        return _Regions(boxes[index], matches[index])

    @torch.no_grad()
    def detect(
        self, image: UInt8[Tensor, "b 3 s s"], content_hw: Int64[Tensor, "b 2"]
    ) -> list[Detections]:
        """Detect objects; boxes in frame pixels, clipped to the part that is image."""
        return self.detect_in(*self.encode(image, content_hw), content_hw)

    @torch.no_grad()
    def detect_in(
        self,
        maps: Sequence[Tensor],
        anchors: AnchorPredictions,
        content_hw: Int64[Tensor, "b 2"],
    ) -> list[Detections]:
        """Detect objects in images whose maps are there already."""
        config = self.config.regions
        limits = self.config.proposals
        proposals = propose(anchors, content_hw, limits, limits.before_nms)
        logits, deltas = self.box_head(pool_regions(maps, proposals, config.box_pool))
        counts = [len(boxes) for boxes in proposals]
        results = [
            self._final_boxes(*image)
            for image in zip(
                proposals,
                logits.softmax(-1)[:, :-1].split(counts),
                deltas.split(counts),
                content_hw,
                strict=True,
            )
        ]
        boxes = [boxes for boxes, _, _ in results]
        pooled = pool_regions(maps, boxes, config.mask_pool)
        masks = self.mask_head.of_classes(pooled, torch.cat([classes for _, _, classes in results]))
        probs = masks.sigmoid().split([len(image) for image in boxes])
        return [Detections(*image, probs[number]) for number, image in enumerate(results)]

    def _final_boxes(
        self,
        proposals: Float[Tensor, "r 4"],
        scores: Float[Tensor, "r k"],
        deltas: Float[Tensor, "r k 4"],
        content_hw: Int64[Tensor, "2"],
    ) -> tuple[Float[Tensor, "n 4"], Float[Tensor, "n"], Int64[Tensor, "n"]]:
        """Return boxes, scores and classes, highest score first."""
        config = self.config.regions
        region, number = torch.where(scores > config.score_threshold)
        decoded = REGION_CODER.decode_single(deltas[region, number], proposals[region])
        boxes = clip_boxes(decoded, content_hw)
        likely = scores[region, number]
        kept = batched_nms(boxes, likely, number, config.nms_iou)[: config.detections]
        kept = kept[is_filled(boxes[kept])]
        return boxes[kept], likely[kept], number[kept]

    def blocks(self) -> list[nn.Module]:
        """Blocks of the backbone, which are recomputed, compiled and sharded one by one."""
        return list(self.image_encoder.trunk.blocks)

    def regions(self) -> list[Region]:
        """List what is compiled as a whole: all that comes before regions are chosen."""
        return [Region(self, "dense", runs_blocks=True)]


def _classes(
    objects: ObjectTargets, matches: Int64[Tensor, "r"], background: int
) -> Int64[Tensor, "r"]:
    """Look up the class of each region."""
    padded = torch.cat([objects.classes, objects.classes.new_full((1,), background)])
    return padded[torch.where(matches >= 0, matches, len(objects.classes))]


@torch.no_grad()
def _target_deltas(
    coder: BoxCoder,
    objects: ObjectTargets,
    matches: Int64[Tensor, "r"],
    boxes: Float[Tensor, "r 4"],
) -> Float[Tensor, "r 4"]:
    """Encode each box's object; a box without one is encoded itself."""
    padded = torch.cat([objects.boxes_xyxy_px, boxes])
    itself = len(objects.classes) + torch.arange(len(boxes), device=boxes.device)
    targets: Tensor = coder.encode_single(padded[torch.where(matches >= 0, matches, itself)], boxes)
    return targets
