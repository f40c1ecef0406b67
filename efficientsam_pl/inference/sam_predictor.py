"""Offer SAM's two-step predictor over `Predictor`, for programs written for `segment_anything`.

Axes: q prompts, p points per prompt, k masks per prompt, h w pixels of the image.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from efficientsam_pl.geometry import Resize
from efficientsam_pl.inference.predictor import EmbeddedImage, Predictor, image_pixels
from efficientsam_pl.inference.prompt_inputs import Numbers, PromptError, numbers
from efficientsam_pl.models.config import SegmenterConfig
from efficientsam_pl.models.segmenter import Segmenter

_BORDER_PX = 0.01  # rounding of coordinates in the model's frame that are scaled back


class SamTransform:
    """Scales coordinates to the model's frame, as SAM's `ResizeLongestSide` does.

    `original_size` is the image's height and width.
    """

    def __init__(self, config: SegmenterConfig) -> None:
        self.target_length = config.encoder.image_size
        self._rule = config.resize

    def resize(self, original_size: tuple[int, int]) -> Resize:
        """Return the resize of an image of this size."""
        height, width = original_size
        return Resize.fit((int(height), int(width)), self.target_length, self._rule)

    def apply_coords(
        self, coords: Numbers, original_size: tuple[int, int]
    ) -> Float[np.ndarray, "*p 2"]:
        """Scale points (x, y)."""
        return self.apply_coords_torch(coords, original_size).cpu().numpy()

    def apply_boxes(
        self, boxes: Numbers, original_size: tuple[int, int]
    ) -> Float[np.ndarray, "q 4"]:
        """Scale boxes (x0, y0, x1, y1)."""
        return self.apply_boxes_torch(boxes, original_size).cpu().numpy()

    def apply_coords_torch(
        self, coords: Numbers, original_size: tuple[int, int]
    ) -> Float[Tensor, "*p 2"]:
        """Scale points (x, y) to a tensor."""
        points = _coordinates(coords, "coords", 2)
        return self.resize(original_size).points_forward(points)

    def apply_boxes_torch(
        self, boxes: Numbers, original_size: tuple[int, int]
    ) -> Float[Tensor, "q 4"]:
        """Scale boxes (x0, y0, x1, y1) to a tensor [q, 4]."""
        corners = _coordinates(boxes, "boxes", 4)
        return self.resize(original_size).boxes_forward(corners.reshape(-1, 4))


class SamPredictor:
    """SAM's `SamPredictor`: `set_image`, then `predict` as often as needed.

    As in SAM, except that mistakes raise PromptError, boxes are clipped to the image, points
    outside it are refused, and `set_torch_image` is missing.
    """

    def __init__(self, model: Segmenter) -> None:
        self.model = model
        self.transform = SamTransform(model.config)
        self._predictor = Predictor(model)
        self._embedded: EmbeddedImage | None = None

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @property
    def is_image_set(self) -> bool:
        """Whether `set_image` has been called."""
        return self._embedded is not None

    @property
    def original_size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self._image().resize.image_hw

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the image in the model, without padding."""
        return self._image().resize.content_hw

    @property
    def features(self) -> Float[Tensor, "1 c g g"]:
        """Features of the image."""
        return self._image().features

    def set_image(self, image: object, image_format: str = "RGB") -> None:
        """Embed the image that later calls of `predict` refer to.

        Args:
            image: As `Predictor.embed` takes it.
            image_format: Order of the channels, "RGB" or "BGR" (OpenCV's).

        Raises:
            PromptError: Another format, or no image.
        """
        if image_format not in ("RGB", "BGR"):
            raise PromptError(f"image_format={image_format!r} must be 'RGB' or 'BGR'")
        pixels = image_pixels(image)
        self._embedded = self._predictor.embed(
            pixels[..., ::-1] if image_format == "BGR" else pixels
        )

    def reset_image(self) -> None:
        """Forget the image."""
        self._embedded = None

    def get_image_embedding(self) -> Float[Tensor, "1 c g g"]:
        """Return the features of the image.

        Raises:
            PromptError: No image is set.
        """
        return self.features

    def predict(
        self,
        point_coords: Numbers | None = None,
        point_labels: Numbers | None = None,
        box: Numbers | None = None,
        mask_input: Numbers | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[
        Bool[np.ndarray, "k h w"] | Float[np.ndarray, "k h w"],
        Float[np.ndarray, "k"],
        Float[np.ndarray, "k mh mw"],
    ]:
        """Predict masks, IoU and low-resolution logits for one prompt, as SAM returns them.

        Args:
            point_coords: [p, 2] image pixels (x, y).
            point_labels: [p] 1 for foreground, 0 for background; default: foreground.
            box: [4] or [1, 4] corners (x0, y0, x1, y1) in image pixels.
            mask_input: [1, 256, 256] low-resolution logits of a previous prediction.
            multimask_output: Three candidates; False: the mask of token 0.
            return_logits: Return logits at the image's size instead of masks.

        Raises:
            PromptError: No image is set, or a prompt as in `EmbeddedImage.predict`.
        """
        image = self._image()
        if box is not None:
            box = numbers(box, "box")
            if box.shape not in ((4,), (1, 4)):
                raise PromptError(
                    f"box must have the shape [4], not {list(box.shape)}; predict_torch takes "
                    "several"
                )
            box = box.reshape(1, 4)
        (result,) = image.predict_each(
            _one_prompt(point_coords, "point_coords", 2),
            _one_prompt(point_labels, "point_labels", 1),
            box,
            mask_input,
            not multimask_output,
        )
        masks = result.logits() if return_logits else result.masks()
        return (
            masks.cpu().numpy(),
            result.iou.cpu().numpy(),
            result.low_res_logits.cpu().numpy(),
        )

    def predict_torch(
        self,
        point_coords: Numbers | None,
        point_labels: Numbers | None,
        boxes: Numbers | None = None,
        mask_input: Numbers | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[
        Bool[Tensor, "q k h w"] | Float[Tensor, "q k h w"],
        Float[Tensor, "q k"],
        Float[Tensor, "q k mh mw"],
    ]:
        """Predict for q prompts whose coordinates `transform` has scaled to the model's frame.

        Args:
            point_coords: [q, p, 2] model pixels (x, y).
            point_labels: [q, p] as in `EmbeddedImage.predict`.
            boxes: [q, 4] model pixels.
            mask_input: [q, 1, 256, 256] low-resolution logits.
            multimask_output: Three candidates; False: the mask of token 0.
            return_logits: Return logits at the image's size instead of masks.

        Raises:
            PromptError: No image is set, or a prompt as in `EmbeddedImage.predict`.
        """
        image = self._image()
        points = None if point_coords is None else self._points_back(point_coords)
        if boxes is not None:
            boxes = image.resize.boxes_back(_coordinates(boxes, "boxes", 4))
        prompts = (points, point_labels, boxes, mask_input, not multimask_output)
        prediction = image.predict(*prompts)
        low_res = prediction.low_res_logits
        masks = image.resize.masks_back(low_res) if return_logits else prediction.masks
        return masks, prediction.iou, low_res

    def _image(self) -> EmbeddedImage:
        if self._embedded is None:
            raise PromptError("call set_image before predict")
        return self._embedded

    def _points_back(self, coords: Numbers) -> Float[Tensor, "*p 2"]:
        """Scale back to image pixels; rounding may not carry a point over the border."""
        resize = self._image().resize
        points = resize.points_back(_coordinates(coords, "point_coords", 2))
        limits = points.new_tensor(resize.image_hw[::-1])
        inside = points.clamp(min=torch.zeros_like(limits), max=limits)
        return inside.where((inside - points).abs() < _BORDER_PX, points)


def _coordinates(values: Numbers, name: str, size: int) -> Float[Tensor, "..."]:
    """Convert points (size 2) or boxes (4) whose last axis is checked; `[]` is none of them."""
    tensor = numbers(values, name)
    if tensor.shape == (0,):
        tensor = tensor.reshape(0, size)
    if tensor.ndim == 0 or tensor.shape[-1] != size:
        raise PromptError(
            f"{name} must have {size} values along the last axis, not the shape "
            f"{list(tensor.shape)}"
        )
    return tensor


def _one_prompt(
    values: Numbers | None, name: Literal["point_coords", "point_labels"], axes: int
) -> Tensor | None:
    """Add the axis of the prompts to the values of a single one."""
    if values is None:
        return None
    tensor = numbers(values, name)
    if tensor.ndim != axes or (axes == 2 and tensor.shape[1] != 2):
        expected = "[p, 2]" if axes == 2 else "[p]"
        raise PromptError(f"{name} must have the shape {expected}, not {list(tensor.shape)}")
    return tensor[None]
