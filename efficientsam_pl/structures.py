"""Records that pass between parts of the package, with shapes and units.

Axes: b images in a batch, q prompts an image (one mask each), k candidate masks a prompt,
p points a prompt, h w pixels. A coordinate is (x, y) with pixel centres at whole numbers,
as in SAM; a box is (x0, y0, x1, y1). `valid` is True for real entries, False for padding.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from efficientsam_pl.records import CorruptSample, InstanceImage

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True)
class Region:
    """A method that may be compiled as a whole: shapes are static, no device value is read.

    `owner.method` is replaced by its compiled form, so that names of parameters stay as they are.
    The `forward` of a module runs the blocks in it; another method does if `runs_blocks` is set.
    `dynamic` is torch.compile's: False: code for each shape; None: a size that changes becomes a
    variable.
    """

    owner: Any
    method: str = "forward"
    dynamic: bool | None = False
    runs_blocks: bool = False


class Label(IntEnum):
    """Meaning of a point of a prompt; the numbers are SAM's."""

    PADDING = -1
    NEGATIVE = 0
    POSITIVE = 1
    TOP_LEFT = 2
    BOTTOM_RIGHT = 3


@dataclass(frozen=True)
class _OnDevice:
    """A record of tensors that moves between devices as a whole."""

    def _map(self, name: str, *args: Any, **kwargs: Any) -> Self:
        moved = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = getattr(value, name)(*args, **kwargs)
        return replace(self, **moved)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Copy the record with every tensor moved as by `Tensor.to`."""
        return self._map("to", *args, **kwargs)

    def pin_memory(self) -> Self:
        """Copy the record into page-locked memory, for DataLoader."""
        return self._map("pin_memory")


@runtime_checkable
class Batch(Protocol):
    """The fields of every training stage's batch; `valid` is True for slots that are trained on."""

    @property
    def valid(self) -> Tensor:
        """Slots that hold a sample, or one of its masks."""
        ...

    @property
    def key(self) -> tuple[str, ...]:
        """Names of the samples; "" for padding."""
        ...

    @property
    def corrupt(self) -> tuple[CorruptSample, ...]:
        """Samples that could not be used."""
        ...

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Copy the record with every tensor moved as by `Tensor.to`."""
        ...


@dataclass(frozen=True)
class ImageBatch(_OnDevice):
    """Images for pretraining, already cropped to the student's size.

    `sample_key` is a number made of (seed, epoch, sample): every random choice about a sample
    is a function of it, so that another world size draws the same. `features` are the stored
    teacher's for these crops, row-major over the student's grid; None where it runs online.
    """

    image: UInt8[Tensor, "b 3 h w"]
    sample_key: Int64[Tensor, "b"]
    valid: Bool[Tensor, "b"]
    key: tuple[str, ...]
    corrupt: tuple[CorruptSample, ...] = ()
    features: Float[Tensor, "b n c"] | None = None

    def __len__(self) -> int:
        return len(self.key)


@dataclass(frozen=True)
class MaskBatch(_OnDevice):
    """Images with some of their masks, at the model's size and by its resize rule.

    Coordinates are model pixels, measured at image precision before the masks were reduced
    to the loss resolution. `content_hw` is the part of the frame without padding. `clicks_px`
    are uniform random foreground pixels of each mask.
    """

    image: UInt8[Tensor, "b 3 h w"]
    content_hw: Int64[Tensor, "b 2"]
    masks: Bool[Tensor, "b q mh mw"]
    boxes_xyxy_px: Float[Tensor, "b q 4"]
    clicks_px: Float[Tensor, "b q p 2"]
    valid: Bool[Tensor, "b q"]
    sample_key: Int64[Tensor, "b"]
    key: tuple[str, ...]
    corrupt: tuple[CorruptSample, ...] = ()

    def __len__(self) -> int:
        return len(self.key)


@dataclass(frozen=True)
class ScoringBatch(_OnDevice):
    """Images in the model's frame, values 0..255, with their annotations.

    `content_hw` is the part of the frame without padding; masks are run-lengths at the image's
    original size. `number` identifies an image in its set; padding and corrupt samples have no
    annotations and are not scored.
    """

    image: Float[Tensor, "b 3 s s"]
    content_hw: Int64[Tensor, "b 2"]
    number: tuple[int, ...]
    annotations: tuple[InstanceImage | None, ...]
    key: tuple[str, ...]
    corrupt: tuple[CorruptSample, ...] = ()

    def __len__(self) -> int:
        return len(self.key)


@dataclass(frozen=True)
class MaskTargets(_OnDevice):
    """Masks to segment, with the boxes and clicks to prompt for them; as in MaskBatch.

    `sample_key` is one key a mask, so that a chunk of masks draws the same as all masks do.
    """

    masks: Bool[Tensor, "b q mh mw"]
    boxes_xyxy_px: Float[Tensor, "b q 4"]
    clicks_px: Float[Tensor, "b q p 2"]
    valid: Bool[Tensor, "b q"]
    sample_key: Int64[Tensor, "b q"]

    def chunks(self, chunk_size: int | None) -> list[Self]:
        """Split the masks of every image into chunks of at most that many; None: a single one."""
        count = self.valid.shape[1]
        step = chunk_size or max(count, 1)
        return [
            self._map("narrow", 1, first, min(step, count - first))
            for first in range(0, count, step)
        ]


@dataclass(frozen=True)
class Prompts(_OnDevice):
    """Points, boxes and masks as prompts, in model pixels; labels as in `Label`, corners included.

    `boxes_xyxy_px` is a shorthand for two labelled corners in every prompt. Prompts of mixed
    kinds in one batch are written as points with labels TOP_LEFT and BOTTOM_RIGHT.
    """

    points_px: Float[Tensor, "b q p 2"]
    labels: Int64[Tensor, "b q p"]
    boxes_xyxy_px: Float[Tensor, "b q 4"] | None = None
    mask_logits: Float[Tensor, "b q mh mw"] | None = None

    @staticmethod
    def together(rounds: list[Prompts]) -> Prompts:
        """Join prompts of equal length along q, one round after the other."""
        if len(rounds) == 1:
            return rounds[0]
        joined = {
            field.name: torch.cat([getattr(prompts, field.name) for prompts in rounds], dim=1)
            for field in fields(rounds[0])
            if getattr(rounds[0], field.name) is not None
        }
        return Prompts(**joined)

    @staticmethod
    def of_boxes(boxes_xyxy_px: Float[Tensor, "b q 4"]) -> Prompts:
        """Prompt with a box each, no clicks."""
        b, q, _ = boxes_xyxy_px.shape
        none = boxes_xyxy_px.new_zeros(b, q, 0, 2)
        return Prompts(none, none[..., 0].long(), boxes_xyxy_px)

    @staticmethod
    def of_clicks(points_px: Float[Tensor, "b q p 2"]) -> Prompts:
        """Prompt with positive clicks only."""
        labels = torch.full(points_px.shape[:3], Label.POSITIVE, device=points_px.device)
        return Prompts(points_px, labels)


@dataclass(frozen=True)
class RoundGroup:
    """Successive rounds whose prompts are decoded together, since they are equally long.

    `corrected`: the next round depends on the predictions of this one, which is then alone.
    """

    numbers: range
    corrected: bool = False

    def split(self, rounds: int) -> list[Self]:
        """Split into groups of at most that many rounds, as equal as possible."""
        count = len(self.numbers)
        step = -(-count // -(-count // rounds))
        return [
            replace(self, numbers=self.numbers[first : first + step])
            for first in range(0, count, step)
        ]


@dataclass(frozen=True)
class PreviousRound:
    """Prompts of a round and the masks predicted from them, which the next round corrects.

    `mask_logits` are those of one mask a prompt, without a gradient.
    """

    prompts: Prompts
    mask_logits: Float[Tensor, "b q mh mw"]


@dataclass(frozen=True)
class Prediction(_OnDevice):
    """The mask decoder's output: k masks a prompt, each with its predicted IoU.

    Logits are at a quarter of the model's size, over the model's square frame (padding too).
    From the decoder k counts all mask tokens, the single mask (token 0) first.
    """

    low_res_logits: Float[Tensor, "b q k mh mw"]
    iou: Float[Tensor, "b q k"]

    def candidates(self) -> Prediction:
        """Masks of tokens 1.., meant for ambiguous prompts."""
        return Prediction(self.low_res_logits[:, :, 1:], self.iou[:, :, 1:])

    def single(self) -> Prediction:
        """Mask of token 0 alone."""
        return Prediction(self.low_res_logits[:, :, :1], self.iou[:, :, :1])

    def select(self, tokens: Literal["candidates", "single"]) -> Prediction:
        """Select one mask a prompt: the best of the candidates, or token 0's."""
        return self.single() if tokens == "single" else self.candidates().best()

    def best(self) -> Prediction:
        """Mask with the highest predicted IoU per prompt; k becomes 1."""
        chosen = self.iou.argmax(dim=2, keepdim=True)
        index = chosen[..., None, None].expand(-1, -1, -1, *self.low_res_logits.shape[-2:])
        return Prediction(self.low_res_logits.gather(2, index), self.iou.gather(2, chosen))


@runtime_checkable
class PromptSampler(Protocol):
    """Prompts for masks, in as many rounds as it needs."""

    @property
    def rounds(self) -> int:
        """Number of prompts for each mask."""
        ...

    def targets(self, batch: MaskBatch) -> MaskTargets:
        """Masks to prompt for, each with a key for its random draws."""
        ...

    def groups(self) -> list[RoundGroup]:
        """List all rounds in their order, in groups that are decoded together."""
        ...

    def sample(self, targets: MaskTargets, number: int, previous: PreviousRound | None) -> Prompts:
        """Sample the prompts of round `number`.

        `previous` is the round before where that is corrected; other samplers may be given it too.
        """
        ...

    def output_tokens(self, number: int) -> Literal["candidates", "single"]:
        """Output tokens that are used in round `number`; the same in all rounds of a group."""
        ...

    def regions(self) -> list[Region]:
        """List what is compiled as a whole."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClassBatch(ImageBatch):
    """Images with their class numbers, and how each is mixed with another of the batch.

    `own_share` of a label is the image's own, the rest its partner's. `mix_box` (y0, y1, x0, x1) is
    replaced by the partner's pixels; where it is empty, pixels are blended in the same shares.
    """

    label: Int64[Tensor, "b"]
    partner: Int64[Tensor, "b"]
    own_share: Float[Tensor, "b"]
    mix_box: Int64[Tensor, "b 4"]


@dataclass(frozen=True)
class SemanticBatch(_OnDevice):
    """Square crops with a class number for every pixel, 0..K-1, or 255: ignored.

    Beyond the image's content a crop is grey (128) and its labels are 255; a missing image has
    no other label. `present` are the classes of each image, ascending, none of a missing one: on
    the host, so that a loss knows its shapes without reading the device. `step_counts` are what
    the training loader counted in this rank's batches of a step.
    """

    image: UInt8[Tensor, "b 3 s s"]
    labels: UInt8[Tensor, "b s s"]
    valid: Bool[Tensor, "b"]
    sample_key: Int64[Tensor, "b"]
    key: tuple[str, ...]
    corrupt: tuple[CorruptSample, ...] = ()
    present: tuple[tuple[int, ...], ...] = ()
    step_counts: Float[Tensor, " counts"] | None = None

    def __len__(self) -> int:
        return len(self.key)


@dataclass(frozen=True)
class DetectionBatch(_OnDevice):
    """Images in a square frame with the objects to detect, as detectron2's ViTDet is trained.

    The resized image is at the top left of the frame, zeros elsewhere; `content_hw` is its size.
    The objects of all images follow each other. Coordinates are frame pixels by detectron2's rule:
    they count edges of pixels, so that x1 is the last column of an object plus 1. `classes` are
    numbers from 0, in the order of the category list. `annotations` are those of images that are
    scored: crowds too, at the image's own size, with class numbers as categories; else None.
    """

    image: UInt8[Tensor, "b 3 s s"]
    content_hw: Int64[Tensor, "b 2"]
    boxes_xyxy_px: Float[Tensor, "objects 4"]
    classes: Int64[Tensor, "objects"]
    masks: Bool[Tensor, "objects s s"]
    objects_per_image: tuple[int, ...]
    valid: Bool[Tensor, "b"]
    sample_key: Int64[Tensor, "b"]
    key: tuple[str, ...]
    corrupt: tuple[CorruptSample, ...] = ()
    annotations: tuple[InstanceImage | None, ...] = ()

    def __len__(self) -> int:
        return len(self.key)


@dataclass(frozen=True)
class Detections(_OnDevice):
    """The objects found in one image, highest score first; coordinates as in DetectionBatch.

    `mask_probs` are over the box, of the object's own class.
    """

    boxes_xyxy_px: Float[Tensor, "n 4"]
    scores: Float[Tensor, "n"]
    classes: Int64[Tensor, "n"]
    mask_probs: Float[Tensor, "n m m"]

    def __len__(self) -> int:
        return len(self.scores)
