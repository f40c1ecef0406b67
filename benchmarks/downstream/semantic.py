"""Time a step of semantic segmentation against transformers' Mask2Former on the same backbone.

Both have a ViT-Ti with ViTDet's pyramid, decoders of width 64 with all of Mask2Former's layers and
queries, its losses on as many points, and AdamW with a clipped gradient in float32. transformers is
given normalised floats and masks of floats, made beforehand. Without transformers (the extra
"bench") our own times are reported alone.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.harness import Row, Taken, alternate, peak_memory_rise, timed_rows
from efficientsam_pl.losses.config import SegmentLossConfig
from efficientsam_pl.models.config import EncoderConfig
from efficientsam_pl.models.semantic.config import MaskHeadConfig, SemanticConfig
from efficientsam_pl.models.semantic.deformable_attention import (
    DeformableAttention,
    Grid,
    reference_points,
)
from efficientsam_pl.models.semantic.mask2former import SemanticSegmenter
from efficientsam_pl.optim.adamw import build_optimizer
from efficientsam_pl.optim.config import semantic_optim
from efficientsam_pl.recipes.semantic.module import SemanticSegmentation, stamp_counts
from efficientsam_pl.structures import SemanticBatch

NAME = "downstream"
IMAGES, CLASSES = 2, 5  # classes of an image
_LOSS = SegmentLossConfig()
_Way = Literal["ours", "transformers"]


def tiny_config(side: int = 128) -> SemanticConfig:
    """Describe a segmenter that a CPU trains in a second: narrow, with all layers and queries."""
    head = MaskHeadConfig(width=64, pixel_ffn=256, ffn=512)
    return SemanticConfig(vit=EncoderConfig(image_size=side), head=head, feature_channels=64)


def measure(quick: bool, seconds: float) -> list[Row]:
    """Rows of a step's time, of deformable attention's, and, unless it is quick, of memory.

    Args:
        quick: Whether to leave out memory, which takes another two steps in processes of their own.
        seconds: No further round starts that would end later than this.
    """
    config, ways = tiny_config(), list(reference_ways())
    start = time.perf_counter()
    steps: dict[str, Callable[[], object]] = {way: prepare(config, way) for way in ways}
    left = seconds - (time.perf_counter() - start)
    taken = alternate(steps, 5 if quick else 11, 0.6 * left)
    work = (
        f"forward, matching, losses, backward, clipping and AdamW, float32, {IMAGES} images at "
        f"{config.vit.image_size}; median of {taken['ours'].rounds} rounds; reference: "
        "transformers' Mask2Former on the same backbone and pyramid"
    )
    rows = _timed("semantic_step", work, taken, IMAGES, goal=0.9)
    if not quick:
        peaks = [peak_memory_rise(partial(prepare, config, way)) for way in ways]
        rows.append(
            Row(
                id=f"{NAME}.semantic_step_peak_memory",
                work=f"rise of resident memory during a step of {IMAGES} images",
                value=peaks[0] / 2**20,
                unit="MiB",
                reference=peaks[1] / 2**20 if len(peaks) > 1 else None,
            )
        )
    return [*rows, *attention_rows(0.2 * left)]


def reference_ways() -> Sequence[_Way]:
    """List what can be timed on this machine."""
    return ("ours", "transformers") if find_spec("transformers") else ("ours",)


def prepare(config: SemanticConfig, way: _Way) -> Callable[[], object]:
    """Prepare a step with seeded weights, after a first one."""
    step = OurStep(config) if way == "ours" else TransformersStep(config)
    step()
    return step


def label_maps(side: int, classes: int) -> tuple[Tensor, tuple[tuple[int, ...], ...]]:
    """Draw images of stripes, each of another class, and list the classes of each."""
    draw = torch.Generator().manual_seed(0)
    present = [
        torch.randperm(classes, generator=draw)[:CLASSES].sort().values for _ in range(IMAGES)
    ]
    rows = torch.arange(side) * CLASSES // side
    labels = torch.stack([numbers[rows][:, None].expand(-1, side) for numbers in present])
    return labels.to(torch.uint8), tuple(tuple(numbers.tolist()) for numbers in present)


class OurStep:
    """The step as the trainer takes it."""

    def __init__(self, config: SemanticConfig) -> None:
        torch.manual_seed(0)
        optim = semantic_optim()
        self._stage = SemanticSegmentation(
            SemanticSegmenter(config), _LOSS, optim, 1, lambda _: None
        )
        self._optimizer = build_optimizer(self._stage.model, optim)
        side = config.vit.image_size
        labels, present = label_maps(side, config.classes)
        self._batch = SemanticBatch(
            image=torch.randint(0, 256, (IMAGES, 3, side, side), dtype=torch.uint8),
            labels=labels,
            valid=torch.ones(IMAGES, dtype=torch.bool),
            sample_key=torch.arange(IMAGES),
            key=tuple(map(str, range(IMAGES))),
            present=present,
        )

    def __call__(self) -> None:
        """Take one step."""
        queries = self._stage.model.config.head.queries
        [batch] = stamp_counts([self._batch], queries, _LOSS)
        self._stage.training_step(batch, 0)["loss"].backward()
        self._stage.configure_gradient_clipping(self._optimizer)
        self._optimizer.step()
        self._optimizer.zero_grad()


class TransformersStep:
    """The step of transformers' model with torch's AdamW and clipping."""

    def __init__(self, config: SemanticConfig) -> None:
        torch.manual_seed(0)
        self._model = transformers_model(config).train()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), 2e-4, weight_decay=0.05)
        side = config.vit.image_size
        labels, present = label_maps(side, config.classes)
        self._pixels = torch.randn(IMAGES, 3, side, side)
        self._classes = [torch.tensor(numbers) for numbers in present]
        self._masks = [
            (image == numbers[:, None, None]).float()
            for image, numbers in zip(labels, self._classes, strict=True)
        ]

    def __call__(self) -> None:
        """Take one step."""
        output = self._model(self._pixels, mask_labels=self._masks, class_labels=self._classes)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 0.01)
        self._optimizer.step()
        self._optimizer.zero_grad()


class _Backbone(nn.Module):
    """Our backbone and pyramid as transformers' models expect them."""

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        self.segmenter = SemanticSegmenter(config)
        del self.segmenter.head
        self.channels = 4 * [config.feature_channels]

    def forward(self, pixels: Tensor) -> Any:
        """Return the maps of strides 4 to 32."""
        from transformers.modeling_outputs import BackboneOutput

        return BackboneOutput(feature_maps=self.segmenter.features(pixels))


def transformers_model(config: SemanticConfig) -> Any:
    """Build transformers' Mask2Former of the same sizes on our backbone."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation
    from transformers.models.mask2former import modeling_mask2former

    head = config.head
    described = Mask2FormerConfig(
        feature_size=head.width,
        mask_feature_size=head.width,
        hidden_dim=head.width,
        encoder_feedforward_dim=head.pixel_ffn,
        encoder_layers=head.pixel_layers,
        decoder_layers=head.layers + 1,  # it counts predictions
        num_attention_heads=head.heads,
        dim_feedforward=head.ffn,
        num_queries=head.queries,
        train_num_points=_LOSS.points,
        id2label={number: str(number) for number in range(config.classes)},
        label2id={str(number): number for number in range(config.classes)},
    )
    backbone = _Backbone(config)
    with mock.patch.object(modeling_mask2former, "load_backbone", return_value=backbone):
        return Mask2FormerForUniversalSegmentation(described)


def attention_rows(seconds: float) -> list[Row]:
    """Rows of a layer of deformable attention at Mask2Former's width on an image of 256 pixels."""
    grids: list[Grid] = [(8, 8), (16, 16), (32, 32)]
    width, heads, points = 256, 8, 4
    torch.manual_seed(0)
    ours = DeformableAttention(width, heads, len(grids), points)
    nn.init.normal_(ours.sampling_offsets.weight, std=0.05)
    nn.init.normal_(ours.attention_weights.weight, std=0.05)
    query = torch.randn(IMAGES, sum(rows * columns for rows, columns in grids), width)
    tokens = torch.randn_like(query)
    places = reference_points(grids, query)
    calls: dict[str, Callable[[], Tensor]] = {"ours": lambda: ours(query, places, tokens, grids)}
    if len(reference_ways()) > 1:
        calls["transformers"] = partial(_their_attention(ours), query, tokens, places, grids)
    taken = alternate({way: partial(_both_ways, calls[way]) for way in calls}, 11, seconds)
    work = (
        "deformable attention forward and backward, width 256, 8 heads, 3 levels of an image of "
        f"256 pixels, batch {IMAGES}; grid_sample in both"
    )
    rows = _timed("deformable_attention", work, taken, IMAGES, goal=None)
    if "transformers" in calls:
        with torch.no_grad():
            difference = float((calls["ours"]() - calls["transformers"]()).abs().max())
        rows.append(
            Row(
                id=f"{NAME}.deformable_attention_difference",
                work="largest absolute difference of both outputs with the same weights",
                value=difference,
                unit="",
                goal=1e-5,
            )
        )
    return rows


def _their_attention(ours: DeformableAttention) -> Callable[..., Tensor]:
    """Build transformers' attention with our weights, called as ours is."""
    from transformers.models.mask2former import modeling_mask2former as theirs

    width = ours.value_proj.in_features
    attention = theirs.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(
        width, ours.heads, ours.levels, ours.points
    )
    attention.load_state_dict(ours.state_dict())

    def call(query: Tensor, tokens: Tensor, places: Tensor, grids: Sequence[Grid]) -> Tensor:
        output: Tensor = attention(
            hidden_states=query,
            encoder_hidden_states=tokens,
            reference_points=places[None, :, None].expand(len(query), -1, len(grids), -1),
            spatial_shapes_list=list(grids),
        )[0]
        return output

    return call


def _both_ways(call: Callable[[], Tensor]) -> None:
    call().square().sum().backward()


def _timed(
    name: str, work: str, taken: dict[str, Taken], images: int, goal: float | None
) -> list[Row]:
    """Rows of wall and processor time, with a reference where there is one."""
    ids = (f"{NAME}.{name}", f"{NAME}.{name}_processor_time")
    if "transformers" in taken:
        return timed_rows(ids, work, taken["ours"], taken["transformers"], goal, images)
    alone = f"{work} (not installed)"
    return [Row(id=ids[0], work=alone, value=taken["ours"].wall / images, unit="s/image")]
