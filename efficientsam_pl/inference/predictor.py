"""Embed an image once, prompt it often.

Axes: q prompts, p points per prompt, k masks per prompt, h w pixels of the image.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from efficientsam_pl.data.images.arrays import rgb_pixels
from efficientsam_pl.errors import UserError
from efficientsam_pl.geometry import Resize
from efficientsam_pl.inference.prompt_inputs import Numbers, PromptError, PromptInputs, read_prompts
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.structures import Prediction, Prompts

CHUNK_SIZE = 32  # prompts whose logits are in memory at once


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
class PromptPrediction:
    """Candidates of one prompt, in the model's order; resized to the image only on request."""

    low_res_logits: Float[Tensor, "k mh mw"]
    iou: Float[Tensor, "k"]
    resize: Resize

    @torch.inference_mode()
    def logits(self) -> Float[Tensor, "k h w"]:
        """Resize the logits of all candidates to the image's size."""
        return self.resize.masks_back(self.low_res_logits[None])[0]

    def masks(self) -> Bool[Tensor, "k h w"]:
        """Compute the masks of all candidates."""
        return self.logits() > 0

    @torch.inference_mode()
    def best_mask(self) -> Bool[Tensor, "h w"]:
        """Compute the mask with the highest predicted IoU alone."""
        best = self.low_res_logits[self.iou.argmax()]
        return self.resize.masks_back(best[None, None])[0, 0] > 0


@dataclass(frozen=True)
class EmbeddedImage:
    """The features of an image; immutable, so they can be cached and shared."""

    model: Segmenter
    features: Float[Tensor, "1 c g g"]
    resize: Resize

    @torch.inference_mode()
    def predict(
        self,
        points: Numbers | None = None,
        labels: Numbers | None = None,
        boxes: Numbers | None = None,
        mask_logits: Numbers | None = None,
        single_mask: bool = False,
    ) -> ImagePrediction:
        """Predict masks for q prompts, all of them at the image's size: q * k * h * w bytes.

        `predict_each` takes the same prompts and holds one prompt's masks at a time. Numbers are
        lists, arrays or tensors of any type and device. No prompt (q = 0) gives empty results.

        Args:
            points: [q, p, 2] image pixels (x, y).
            labels: [q, p] 1 for foreground, 0 for background, -1 for padding, 2 and 3 for a box's
                corners; default: foreground. Padding fills up shorter prompts: neither its
                coordinates nor its number change the prediction (beyond rounding).
            boxes: [q, 4] corners (x0, y0, x1, y1) in image pixels; clipped to the image, with a
                ClippedBoxWarning.
            mask_logits: [q, 256, 256] `low_res_logits` of a previous prediction, one per prompt;
                also [q, 1, 256, 256], and [256, 256] for a single prompt.
            single_mask: Return only the mask of token 0 instead of the candidates.

        Raises:
            PromptError: No prompt, wrong shapes, unequal lengths, a point or a whole box outside
                the image, or a prompt type that the model does not support.
        """
        inputs = self._inputs(points, labels, boxes, mask_logits)
        side, config = self._logits_side(), self.model.config.decoder
        count, k = len(inputs), 1 if single_mask else config.candidates
        device = self.features.device
        masks = torch.empty(count, k, *self.resize.image_hw, dtype=torch.bool, device=device)
        iou = torch.empty(count, k, device=device)
        low_res = torch.empty(count, k, side, side, device=device)
        for index, each in enumerate(self._predict_each(inputs, single_mask, CHUNK_SIZE)):
            masks[index], iou[index], low_res[index] = each.masks(), each.iou, each.low_res_logits
        return ImagePrediction(masks, iou, low_res)

    def predict_each(
        self,
        points: Numbers | None = None,
        labels: Numbers | None = None,
        boxes: Numbers | None = None,
        mask_logits: Numbers | None = None,
        single_mask: bool = False,
        chunk_size: int = CHUNK_SIZE,
    ) -> Iterator[PromptPrediction]:
        """Yield the predictions of `predict` prompt by prompt, in bounded memory.

        Args:
            points: As in `predict`.
            labels: As in `predict`.
            boxes: As in `predict`.
            mask_logits: As in `predict`.
            single_mask: As in `predict`.
            chunk_size: Prompts whose logits are in memory at once, rounded up to a multiple of
                the decoder's batch, so that results do not depend on it.

        Raises:
            PromptError: As in `predict`.
        """
        if chunk_size < 1:
            raise PromptError(f"chunk_size={chunk_size} must be at least 1")
        inputs = self._inputs(points, labels, boxes, mask_logits)
        return self._predict_each(inputs, single_mask, chunk_size)

    @torch.inference_mode()
    def decode(self, prompts: Prompts) -> Prediction:
        """Predict all mask tokens of prompts in model pixels.

        Raises:
            PromptError: A prompt type or a number of points that the model does not support.
        """
        try:
            return self.model.decode(self.features, prompts)
        except ValueError as error:
            raise PromptError(str(error)) from error

    @torch.inference_mode()
    def _predict_each(
        self, inputs: PromptInputs, single_mask: bool, chunk_size: int
    ) -> Iterator[PromptPrediction]:
        batch = self.model.decoder_batch_size(self.features)
        for chunk in inputs.chunks(-(-chunk_size // batch) * batch):
            predictions: dict[int, PromptPrediction] = {}
            for rows, prompts in chunk.by_length():
                every = self.decode(self._model_prompts(prompts))
                chosen = every.single() if single_mask else every.candidates()
                for index, row in enumerate(rows.tolist()):
                    predictions[row] = PromptPrediction(
                        chosen.low_res_logits[0, index].float(),
                        chosen.iou[0, index].float(),
                        self.resize,
                    )
            for row in range(len(chunk)):
                yield predictions.pop(row)

    def _inputs(
        self,
        points: Numbers | None,
        labels: Numbers | None,
        boxes: Numbers | None,
        mask_logits: Numbers | None,
    ) -> PromptInputs:
        given = {"points": points, "labels": labels, "boxes": boxes, "mask_logits": mask_logits}
        supported = self.model.config.prompts
        return read_prompts(given, self.resize.image_hw, self._logits_side(), supported)

    def _logits_side(self) -> int:
        return 4 * self.model.config.encoder.grid()

    def _model_prompts(self, inputs: PromptInputs) -> Prompts:
        boxes, masks = inputs.boxes, inputs.mask_logits
        return Prompts(
            self.resize.points_forward(inputs.points)[None],
            inputs.labels[None],
            None if boxes is None else self.resize.boxes_forward(boxes)[None],
            None if masks is None else masks[None],
        ).to(self.features.device)


def image_pixels(image: object) -> UInt8[np.ndarray, "h w 3"]:
    """Convert an image in memory to RGB pixels that torch can share.

    Raises:
        PromptError: Names what `data.images.arrays.rgb_pixels` does not accept.
    """
    try:
        pixels = rgb_pixels(image)
    except UserError as error:
        raise PromptError(str(error)) from error
    return pixels if pixels.flags.writeable else pixels.copy()


class Predictor:
    """Embeds images with a segmenter, on the model's device and in its precision."""

    def __init__(self, model: Segmenter) -> None:
        self.model = model.eval()

    @torch.inference_mode()
    def embed(self, image: object) -> EmbeddedImage:
        """Compute the features of one image.

        Args:
            image: A Pillow image, a NumPy array [h, w, 3] or a torch tensor [3, h, w], RGB or grey,
                uint8 or uint16; see `data.images.arrays.rgb_pixels`.

        Raises:
            PromptError: Another type, shape or kind of values.
        """
        pixels = image_pixels(image)
        config = self.model.config
        height, width = pixels.shape[:2]
        resize = Resize.fit((height, width), config.encoder.image_size, config.resize)
        content = resize.image_forward(pixels)
        rows, columns = resize.content_hw
        square = F.pad(content, (0, resize.side - columns, 0, resize.side - rows))
        device = next(self.model.parameters()).device
        features = self.model.encode(
            square[None].to(device), torch.tensor([resize.content_hw], device=device)
        )
        return EmbeddedImage(self.model, features, resize)
