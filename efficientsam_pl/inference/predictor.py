"""Embed an image once, prompt it often.

Axes: q prompts, p points per prompt, k masks per prompt, h w pixels of the image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, UInt8
from numpy.typing import ArrayLike
from torch import Tensor

from efficientsam_pl.errors import UserError
from efficientsam_pl.geometry import Resize
from efficientsam_pl.models.config import PromptEncoderConfig
from efficientsam_pl.models.prompt_kinds import PromptNeeds, unmet_needs
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.structures import Label, Prediction, Prompts


class PromptError(UserError):
    """A prompt that is invalid for this image or this model."""


@dataclass(frozen=True)
class ImagePrediction:
    """Masks at the image's size, candidates in the model's order."""

    masks: Bool[Tensor, "q k h w"]
    iou: Float[Tensor, "q k"]
    low_res_logits: Float[Tensor, "q k mh mw"]

    def best(self) -> Bool[Tensor, "q h w"]:
        """Select the mask with the highest predicted IoU for each prompt."""
        return self.masks[torch.arange(len(self.masks)), self.iou.argmax(dim=1)]


@dataclass(frozen=True)
class EmbeddedImage:
    """The features of an image; immutable, so they can be cached and shared."""

    model: Segmenter
    features: Float[Tensor, "1 c g g"]
    resize: Resize

    @torch.inference_mode()
    def predict(
        self,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        mask_logits: ArrayLike | None = None,
        single_mask: bool = False,
    ) -> ImagePrediction:
        """Predict masks for q prompts in one decoder call.

        Args:
            points: [q, p, 2] image pixels (x, y).
            labels: [q, p] 1 for foreground, 0 for background, -1 for padding, 2 and 3 for a box's
                corners; default: foreground.
            boxes: [q, 4] corners (x0, y0, x1, y1) in image pixels.
            mask_logits: [q, 256, 256] `low_res_logits` of a previous prediction, one per prompt.
            single_mask: Return only the mask of token 0 instead of the candidates.

        Raises:
            PromptError: No prompt, unequal lengths, a point outside the image, or a prompt type
                that the model does not support.
        """
        prompts = self._prompts(points, labels, boxes, mask_logits)
        try:
            every = self.model.decode(self.features, prompts)
        except ValueError as error:
            raise PromptError(str(error)) from error
        chosen: Prediction = every.single() if single_mask else every.candidates()
        low_res = chosen.low_res_logits[0].float()
        masks = torch.stack([self.resize.masks_back(logits[None])[0] > 0 for logits in low_res])
        return ImagePrediction(masks, chosen.iou[0].float(), low_res)

    def _prompts(
        self,
        points: ArrayLike | None,
        labels: ArrayLike | None,
        boxes: ArrayLike | None,
        mask_logits: ArrayLike | None,
    ) -> Prompts:
        lengths = [len(np.asarray(x)) for x in (points, boxes, mask_logits) if x is not None]
        if not lengths or 0 in lengths:
            raise PromptError("no prompt: give points, boxes or mask_logits")
        if len(set(lengths)) > 1:
            raise PromptError(f"points, boxes and mask_logits of unequal lengths {lengths}")
        count, device = lengths[0], self.features.device
        empty = torch.zeros(count, 0, 2)
        xy = empty if points is None else _tensor(points, "points", (count, -1, 2))
        label = torch.full(xy.shape[:2], int(Label.POSITIVE))
        if labels is not None:
            label = _tensor(labels, "labels", tuple(xy.shape[:2])).long()
        corners = None if boxes is None else _tensor(boxes, "boxes", (count, 4))
        self._check(xy, label, corners)
        mask_input = None
        if mask_logits is not None:
            side = 4 * self.model.config.encoder.grid()
            mask_input = _tensor(mask_logits, "mask_logits", (count, side, side))[None].to(device)
        xy = self.resize.points_forward(xy)
        if corners is not None:
            corners = self.resize.boxes_forward(corners)[None].to(device)
        return Prompts(xy[None].to(device), label[None].to(device), corners, mask_input)

    def _check(
        self,
        points: Float[Tensor, "q p 2"],
        labels: Tensor,
        boxes: Float[Tensor, "q 4"] | None,
    ) -> None:
        check_coordinates(
            points[labels != Label.PADDING].tolist(),
            [] if boxes is None else boxes.tolist(),
            self.resize.image_hw,
        )
        known = {int(label) for label in Label}
        unknown = sorted(set(labels.flatten().tolist()) - known)
        if unknown:
            raise PromptError(f"unknown label {unknown[0]}; labels are {sorted(known)}")
        check_known(labels, self.model.config.prompts)


def check_known(labels: Tensor, supported: PromptEncoderConfig) -> None:
    """Refuse negative clicks if the model does not support them.

    Raises:
        PromptError: A negative click for a model without negative clicks.
    """
    needs = PromptNeeds(negative_clicks=bool((labels == Label.NEGATIVE).any()))
    if unmet := unmet_needs(supported, needs):
        raise PromptError(f"a click with label 0 {unmet}")


def check_coordinates(
    points: Iterable[Sequence[Any]], boxes: Iterable[Sequence[Any]], image_hw: tuple[int, int]
) -> None:
    """Check that clicks and boxes lie inside the image; needs no model.

    Raises:
        PromptError: A coordinate outside the image, or a box with reversed corners.
    """
    height, width = image_hw
    corners = list(boxes)
    for x, y in [*points, *(box[:2] for box in corners), *(box[2:] for box in corners)]:
        if not (0 <= x <= width and 0 <= y <= height):
            raise PromptError(f"({x:g}, {y:g}) lies outside the image of {width} x {height} pixels")
    for x0, y0, x1, y1 in corners:
        if x1 < x0 or y1 < y0:
            raise PromptError(
                f"a box must be x0,y0,x1,y1 with x0 <= x1 and y0 <= y1, not "
                f"{x0:g},{y0:g},{x1:g},{y1:g}"
            )


class Predictor:
    """Embeds images with a segmenter, on the model's device."""

    def __init__(self, model: Segmenter) -> None:
        self.model = model.eval()

    @torch.inference_mode()
    def embed(self, image: UInt8[np.ndarray, "h w 3"]) -> EmbeddedImage:
        """Compute the features of one RGB image.

        Raises:
            PromptError: Not uint8 [h, w, 3].
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise PromptError(f"an image must be uint8 [h, w, 3], not {image.dtype} {image.shape}")
        config = self.model.config
        height, width = image.shape[:2]
        resize = Resize.fit((height, width), config.encoder.image_size, config.resize)
        content = resize.image_forward(image)
        rows, columns = resize.content_hw
        square = F.pad(content, (0, resize.side - columns, 0, resize.side - rows))
        device = next(self.model.parameters()).device
        features = self.model.encode(
            square[None].to(device), torch.tensor([resize.content_hw], device=device)
        )
        return EmbeddedImage(self.model, features, resize)


class SamPredictor:
    """SAM's two-step interface over `Predictor`, for programs written against it."""

    def __init__(self, model: Segmenter) -> None:
        self._predictor = Predictor(model)
        self._embedded: EmbeddedImage | None = None

    def set_image(self, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Embed the image that later calls of `predict` refer to."""
        self._embedded = self._predictor.embed(image)

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
    ) -> tuple[Bool[np.ndarray, "k h w"], Float[np.ndarray, "k"], Float[np.ndarray, "k mh mw"]]:
        """Predict masks, IoU and low-resolution logits for one prompt, as SAM returns them.

        Raises:
            PromptError: No image set, or a prompt as in `EmbeddedImage.predict`.
        """
        if self._embedded is None:
            raise PromptError("call set_image before predict")
        result = self._embedded.predict(
            points=None if point_coords is None else np.asarray(point_coords)[None],
            labels=None if point_labels is None else np.asarray(point_labels)[None],
            boxes=None if box is None else np.asarray(box).reshape(1, 4),
            mask_logits=mask_input,
            single_mask=not multimask_output,
        )
        return (
            result.masks[0].cpu().numpy(),
            result.iou[0].cpu().numpy(),
            result.low_res_logits[0].cpu().numpy(),
        )


def _tensor(values: ArrayLike, name: str, shape: tuple[int, ...]) -> Float[Tensor, "..."]:
    tensor = torch.as_tensor(np.asarray(values), dtype=torch.float32)
    fits = tensor.ndim == len(shape) and all(
        size in (-1, actual) for size, actual in zip(shape, tensor.shape, strict=False)
    )
    if not fits:
        expected = ["any" if size == -1 else size for size in shape]
        raise PromptError(f"{name} must have the shape {expected}, not {list(tensor.shape)}")
    return tensor
