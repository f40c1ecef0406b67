"""Embed a photo once, prompt it often.

Axes: q prompts, p points a prompt, k masks a prompt, h w pixels of the photo.
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
    """A prompt that makes no sense for this photo or this model."""


@dataclass(frozen=True)
class ImagePrediction:
    """Masks at the photo's size, candidates in the model's order."""

    masks: Bool[Tensor, "q k h w"]
    iou: Float[Tensor, "q k"]
    low_res_logits: Float[Tensor, "q k mh mw"]

    def best(self) -> Bool[Tensor, "q h w"]:
        """Of each prompt the mask with the highest predicted IoU."""
        return self.masks[torch.arange(len(self.masks)), self.iou.argmax(dim=1)]


@dataclass(frozen=True)
class EmbeddedImage:
    """A photo's features; immutable, so it can be kept and shared."""

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
        """Masks for q prompts, all in one decoder call.

        Args:
            points: [q, p, 2] image pixels (x, y).
            labels: [q, p] 1 for foreground, 0 for background, -1 for a slot without a point,
                2 and 3 for a box's corners; foreground where not given.
            boxes: [q, 4] corners (x0, y0, x1, y1) in image pixels.
            mask_logits: [q, 256, 256] an earlier prediction's `low_res_logits`, one a prompt.
            single_mask: Token 0's mask alone instead of the candidates.

        Raises:
            PromptError: Nothing given, unequal lengths, a point outside the photo, or a kind of
                prompt that the model does not know.
        """
        prompts = self._prompts(points, labels, boxes, mask_logits)
        try:
            every = self.model.decode(self.features, prompts)
        except ValueError as error:
            raise PromptError(str(error)) from error
        chosen: Prediction = every.single() if single_mask else every.candidates()
        low_res = chosen.low_res_logits[0].float()
        masks = torch.stack([self.resize.masks_back(one[None])[0] > 0 for one in low_res])
        return ImagePrediction(masks, chosen.iou[0].float(), low_res)

    def _prompts(
        self,
        points: ArrayLike | None,
        labels: ArrayLike | None,
        boxes: ArrayLike | None,
        mask_logits: ArrayLike | None,
    ) -> Prompts:
        given = [len(np.asarray(x)) for x in (points, boxes, mask_logits) if x is not None]
        if not given or 0 in given:
            raise PromptError("no prompt: give points, boxes or mask_logits")
        if len(set(given)) > 1:
            raise PromptError(f"points, boxes and mask_logits of unequal lengths {given}")
        device = self.features.device
        none = torch.zeros(given[0], 0, 2)
        xy = none if points is None else _tensor(points, "points", (given[0], -1, 2))
        kinds = torch.full(xy.shape[:2], int(Label.POSITIVE))
        if labels is not None:
            kinds = _tensor(labels, "labels", tuple(xy.shape[:2])).long()
        corners = None if boxes is None else _tensor(boxes, "boxes", (given[0], 4))
        self._check(xy, kinds, corners)
        earlier = None
        if mask_logits is not None:
            side = 4 * self.model.config.encoder.grid()
            earlier = _tensor(mask_logits, "mask_logits", (given[0], side, side))[None].to(device)
        xy = self.resize.points_forward(xy)
        if corners is not None:
            corners = self.resize.boxes_forward(corners)[None].to(device)
        return Prompts(xy[None].to(device), kinds[None].to(device), corners, earlier)

    def _check(
        self,
        points: Float[Tensor, "q p 2"],
        labels: Tensor,
        boxes: Float[Tensor, "q 4"] | None,
    ) -> None:
        check_places(
            points[labels != Label.PADDING].tolist(),
            [] if boxes is None else boxes.tolist(),
            self.resize.image_hw,
        )
        known = {int(label) for label in Label}
        unknown = sorted(set(labels.flatten().tolist()) - known)
        if unknown:
            raise PromptError(f"unknown label {unknown[0]}; labels are {sorted(known)}")
        check_known(labels, self.model.config.prompts)


def check_known(labels: Tensor, known: PromptEncoderConfig) -> None:
    """Refuse negative clicks that a model does not know.

    Raises:
        PromptError: There are some.
    """
    needs = PromptNeeds(negative_clicks=bool((labels == Label.NEGATIVE).any()))
    if unmet := unmet_needs(known, needs):
        raise PromptError(f"a click with label 0 {unmet}")


def check_places(
    points: Iterable[Sequence[Any]], boxes: Iterable[Sequence[Any]], image_hw: tuple[int, int]
) -> None:
    """Whether clicks and boxes lie inside a photo, which needs no model.

    Raises:
        PromptError: One does not, or a box is reversed.
    """
    height, width = image_hw
    corners = list(boxes)
    for x, y in [*points, *(box[:2] for box in corners), *(box[2:] for box in corners)]:
        if not (0 <= x <= width and 0 <= y <= height):
            raise PromptError(f"({x:g}, {y:g}) lies outside the photo of {width} x {height} pixels")
    for x0, y0, x1, y1 in corners:
        if x1 < x0 or y1 < y0:
            raise PromptError(
                f"a box must be x0,y0,x1,y1 with x0 <= x1 and y0 <= y1, not "
                f"{x0:g},{y0:g},{x1:g},{y1:g}"
            )


class Predictor:
    """A model ready to answer; moves photos to the model's device."""

    def __init__(self, model: Segmenter) -> None:
        self.model = model.eval()

    @torch.inference_mode()
    def embed(self, image: UInt8[np.ndarray, "h w 3"]) -> EmbeddedImage:
        """Features of one RGB photo.

        Raises:
            PromptError: Not uint8 [h, w, 3].
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise PromptError(f"a photo must be uint8 [h, w, 3], not {image.dtype} {image.shape}")
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
        """Embeds a photo; later calls of `predict` are about it."""
        self._embedded = self._predictor.embed(image)

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
    ) -> tuple[Bool[np.ndarray, "k h w"], Float[np.ndarray, "k"], Float[np.ndarray, "k mh mw"]]:
        """Masks, predicted IoU and low-resolution logits of one prompt, as SAM returns them.

        Raises:
            PromptError: No photo set, or a prompt as in `EmbeddedImage.predict`.
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
        want in (-1, have) for want, have in zip(shape, tensor.shape, strict=False)
    )
    if not fits:
        wanted = ["any" if side == -1 else side for side in shape]
        raise PromptError(f"{name} must have the shape {wanted}, not {list(tensor.shape)}")
    return tensor
