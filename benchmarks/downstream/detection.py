"""Time a step of detection against torchvision's MaskRCNN on the same backbone.

Both have ViTDet's backbone of ViT-Ti's width, the same pyramid, heads with norms, class-specific
masks, and as many proposals and sampled regions; both train by AdamW in float32 on the same images,
whose regions both pool with as many samples as a region has places. torchvision is given floats and
resizes nothing.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import (
    AnchorGenerator,
    FastRCNNConvFCHead,
    FastRCNNPredictor,
)
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from benchmarks.harness import Row, alternate, peak_memory_rise, timed_rows
from efficientsam_pl.models.config import EncoderConfig
from efficientsam_pl.models.detection.config import (
    ANCHOR_RATIOS,
    ANCHOR_SIZES,
    DetectorConfig,
    RegionConfig,
)
from efficientsam_pl.models.detection.detector import Detector
from efficientsam_pl.models.layers import LayerNorm2d
from efficientsam_pl.optim.adamw import build_optimizer
from efficientsam_pl.optim.config import DetectionOptimConfig
from efficientsam_pl.recipes.detection.module import InstanceDetection
from efficientsam_pl.structures import DetectionBatch

NAME = "downstream"
IMAGES, OBJECTS, SIDE = 2, 8, 512
_Way = Literal["ours", "torchvision"]
_WAYS: tuple[_Way, ...] = ("ours", "torchvision")


def tiny_config(side: int = SIDE, sampled: int = 128) -> DetectorConfig:
    """Describe a detector of ViT-Ti's width with narrow heads, which a CPU trains in a second."""
    vit = EncoderConfig(image_size=side, global_attention="listed", relative_positions="decomposed")
    regions = RegionConfig(fc_width=256, sampled=sampled)
    return DetectorConfig(vit=vit, channels=64, regions=regions)


def measure(quick: bool, seconds: float) -> list[Row]:
    """Rows of a step's time and, unless it is to be quick, of its memory.

    Args:
        quick: Whether to leave out memory, which takes another two steps in processes of their own.
        seconds: No further round starts that would end later than this.
    """
    return measure_step(tiny_config(), 5 if quick else 9, seconds, memory=not quick)


def measure_step(config: DetectorConfig, rounds: int, seconds: float, memory: bool) -> list[Row]:
    """Rows of a step of one detector.

    Args:
        config: The detector; torchvision's has its sizes.
        rounds: Maximum number of rounds.
        seconds: No further round starts that would end later than this.
        memory: Whether to measure memory.
    """
    steps: dict[str, Callable[[], object]] = {way: prepare(config, way) for way in _WAYS}
    taken = alternate(steps, rounds, seconds)
    work = (
        f"forward, losses, backward and AdamW of Mask R-CNN, float32, {IMAGES} images of "
        f"{config.vit.image_size} pixels, {config.regions.sampled} regions each; median of "
        f"{taken['ours'].rounds} rounds; reference: torchvision's MaskRCNN on the same backbone"
    )
    ids = (f"{NAME}.detection_step", f"{NAME}.detection_step_processor_time")
    rows = timed_rows(ids, work, taken["ours"], taken["torchvision"], goal=1.05, images=IMAGES)
    if memory:
        peaks = [peak_memory_rise(partial(prepare, config, way)) for way in _WAYS]
        rows.append(
            Row(
                id=f"{NAME}.detection_step_peak_memory",
                work=f"rise of resident memory during a step of {IMAGES} images",
                value=peaks[0] / 2**20,
                unit="MiB",
                reference=peaks[1] / 2**20,
            )
        )
    return rows


def prepare(config: DetectorConfig, way: _Way) -> Callable[[], object]:
    """Prepare a step with seeded weights, after a first one."""
    step = OurStep(config) if way == "ours" else TorchvisionStep(config)
    step()
    return step


def objects(side: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the boxes, classes and masks of all images' objects: ellipses in boxes."""
    draw = torch.Generator().manual_seed(0)
    count = IMAGES * OBJECTS
    size = (side * (0.1 + 0.4 * torch.rand(count, 2, generator=draw))).round()
    corner = ((side - size) * torch.rand(count, 2, generator=draw)).round()
    boxes = torch.cat([corner, corner + size], dim=1)
    centre, radius = corner + size / 2, size / 2
    place = torch.arange(side) + 0.5
    x = ((place - centre[:, :1]) / radius[:, :1])[:, None]
    y = ((place - centre[:, 1:]) / radius[:, 1:])[:, :, None]
    return boxes, torch.arange(count) % classes, x.square() + y.square() <= 1


class OurStep:
    """The step as the trainer takes it."""

    def __init__(self, config: DetectorConfig) -> None:
        torch.manual_seed(0)
        optim = DetectionOptimConfig(peak_lr=1e-4)
        self._stage = InstanceDetection(Detector(config), optim, 1, lambda _: None)
        self._optimizer = build_optimizer(self._stage.model, optim)
        side = config.vit.image_size
        boxes, classes, masks = objects(side, config.classes)
        self._batch = DetectionBatch(
            image=torch.randint(256, (IMAGES, 3, side, side)).to(torch.uint8),
            content_hw=torch.full((IMAGES, 2), side),
            boxes_xyxy_px=boxes,
            classes=classes,
            masks=masks,
            objects_per_image=IMAGES * (OBJECTS,),
            valid=torch.ones(IMAGES, dtype=torch.bool),
            sample_key=torch.arange(IMAGES),
            key=tuple(map(str, range(IMAGES))),
        )

    def __call__(self) -> None:
        """Take one step."""
        output = self._stage.training_step(self._batch, 0)
        output["loss"].backward()
        self._stage.configure_gradient_clipping(self._optimizer)
        self._optimizer.step()
        self._optimizer.zero_grad()


class TorchvisionStep:
    """torchvision's model and losses, and torch's AdamW."""

    def __init__(self, config: DetectorConfig) -> None:
        torch.manual_seed(0)
        self._model = torchvision_model(config)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), 1e-4, weight_decay=0.1)
        side = config.vit.image_size
        self._images = list(torch.rand(IMAGES, 3, side, side))
        boxes, classes, masks = (part.split(OBJECTS) for part in objects(side, config.classes))
        self._targets = [
            {"boxes": boxes[n], "labels": classes[n] + 1, "masks": masks[n].to(torch.uint8)}
            for n in range(IMAGES)
        ]

    def __call__(self) -> None:
        """Take one step."""
        losses: dict[str, Tensor] = self._model(self._images, self._targets)
        torch.stack(list(losses.values())).sum().backward()
        self._optimizer.step()
        self._optimizer.zero_grad()


class _Backbone(nn.Module):
    """The backbone and pyramid of a detector in torchvision's form."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.trunk, self.pyramid = detector.image_encoder.trunk, detector.pyramid
        self.out_channels = detector.config.channels

    def forward(self, pixels: Tensor) -> "OrderedDict[str, Tensor]":
        side = pixels.shape[-1] // 16
        tokens = self.trunk(pixels)
        maps = self.pyramid(tokens.transpose(1, 2).unflatten(2, (side, side)))
        return OrderedDict((str(number), level) for number, level in enumerate(maps))


def torchvision_model(config: DetectorConfig) -> Any:
    """Build torchvision's MaskRCNN on the backbone of a detector, with its sizes."""
    channels, regions, proposals = config.channels, config.regions, config.proposals
    anchors = AnchorGenerator(
        tuple((int(size),) for size in ANCHOR_SIZES), len(ANCHOR_SIZES) * (ANCHOR_RATIOS,)
    )
    pool = partial(MultiScaleRoIAlign, ["0", "1", "2", "3"], sampling_ratio=0)
    return MaskRCNN(
        _Backbone(Detector(config)),
        min_size=config.vit.image_size,
        max_size=config.vit.image_size,
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(channels, len(ANCHOR_RATIOS), conv_depth=2),
        rpn_pre_nms_top_n_train=proposals.before_nms_training,
        rpn_post_nms_top_n_train=proposals.kept,
        box_roi_pool=pool(regions.box_pool),
        box_head=FastRCNNConvFCHead(
            (channels, regions.box_pool, regions.box_pool),
            4 * [channels],
            [regions.fc_width],
            norm_layer=LayerNorm2d,
        ),
        box_predictor=FastRCNNPredictor(regions.fc_width, config.classes + 1),
        box_batch_size_per_image=regions.sampled,
        mask_roi_pool=pool(regions.mask_pool),
        mask_head=MaskRCNNHeads(channels, 4 * [channels], 1, norm_layer=LayerNorm2d),
        mask_predictor=MaskRCNNPredictor(channels, channels, config.classes + 1),
    ).train()
