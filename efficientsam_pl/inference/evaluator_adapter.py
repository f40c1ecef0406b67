"""Our models as segmenters that can be evaluated: `evaluation.segmenting` over `Predictor`.

Axes: q prompts about one photo, k mask tokens, mh mw logits of the decoder, h w pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.interfaces import ImagePrompts
from efficientsam_pl.evaluation.metrics.reachable import GridIous, grid_ious
from efficientsam_pl.geometry import Resize
from efficientsam_pl.inference.predictor import EmbeddedImage, Predictor, PromptError, check_known
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.rle import Rle, encode_many
from efficientsam_pl.structures import Prediction, Prompts

_FLOATS = 2**24  # of logits at the photo's size that lie in memory at once
# Prompts a call of the decoder. A CPU is as fast with four as with more
_AT_ONCE = {"cpu": 4}
_AT_ONCE_ELSEWHERE = 32


class EvaluatorModel:
    """A model ready to be evaluated.

    The decoder is always called with exactly `at_once` prompts, filled up with copies of the last:
    calls of another shape round otherwise. So an answer is the same to the last bit however many
    prompts a protocol asks together and whatever their order. Another `at_once`, device, number of
    threads or torch may change a logit by some 1e-6.

    Args:
        model: On its device.
        at_once: Prompts a call of the decoder; None: 4 on a CPU, 32 elsewhere.
    """

    def __init__(self, model: Segmenter, at_once: int | None = None) -> None:
        if at_once is not None and at_once < 1:
            raise UserError(f"at_once={at_once} must be at least 1")
        device = next(model.parameters()).device.type
        self.at_once = at_once or _AT_ONCE.get(device, _AT_ONCE_ELSEWHERE)
        self._predictor = Predictor(model)

    @property
    def negative_clicks(self) -> bool:
        """Whether label 0 means anything to the model."""
        return self._predictor.model.config.prompts.negative_clicks

    @property
    def mask_prompts(self) -> bool:
        """Whether the model takes earlier masks."""
        return self._predictor.model.config.prompts.mask_prompts

    def embed(self, image: UInt8[np.ndarray, "h w 3"]) -> EvaluatorImage:
        """Features of one RGB photo.

        Raises:
            PromptError: Not uint8 [h, w, 3].
        """
        return EvaluatorImage(self._predictor.embed(image), self.at_once)


@dataclass(frozen=True)
class EvaluatorImage:
    """A photo's features."""

    embedded: EmbeddedImage
    at_once: int

    @torch.inference_mode()
    def ask(self, prompts: ImagePrompts) -> ModelCandidates:
        """What all mask tokens answer.

        Raises:
            PromptError: A kind of prompt, or more points, than the model knows.
        """
        model, resize = self.embedded.model, self.embedded.resize
        check_known(prompts.labels, model.config.prompts)
        logits, iou = [], []
        for part, count in self._parts(prompts):
            try:
                answer: Prediction = model.decode(self.embedded.features, part)
            except ValueError as error:
                raise PromptError(str(error)) from error
            logits.append(answer.low_res_logits[0, :count].float())
            iou.append(answer.iou[0, :count].float().cpu())
        if not logits:
            raise PromptError("no prompt")
        return ModelCandidates(torch.cat(logits), torch.cat(iou), resize)

    def grid_ious(self, truth: Sequence[Rle]) -> GridIous:
        """What the decoder's mask grid makes of true masks and of their boxes."""
        return grid_ious(truth, self.embedded.resize, 4 * self.embedded.model.config.encoder.grid())

    def _parts(self, prompts: ImagePrompts) -> Iterator[tuple[Prompts, int]]:
        """Prompts in model pixels, `at_once` each, and how many of them are real."""
        device, resize = self.embedded.features.device, self.embedded.resize
        boxes, masks = prompts.boxes_xyxy, prompts.mask_logits
        points = resize.points_forward(prompts.points_xy)  # padding, below 0, stays there
        boxes = None if boxes is None else resize.boxes_forward(boxes)
        for first in range(0, len(prompts), self.at_once):
            count = min(self.at_once, len(prompts) - first)
            some = first + torch.arange(self.at_once).clamp(max=count - 1)
            yield (
                Prompts(
                    points[some][None],
                    prompts.labels[some][None],
                    None if boxes is None else boxes[some][None],
                    None if masks is None else masks[some.to(masks.device)][None],
                ).to(device),
                count,
            )


@dataclass(frozen=True)
class ModelCandidates:
    """Logits of all mask tokens, token 0 first; only chosen masks are brought to full size."""

    low_res_logits: Float[Tensor, "q k mh mw"]
    iou: Float[Tensor, "q k"]
    resize: Resize

    @property
    def first_candidate(self) -> int:
        """Token 0 answers clear prompts."""
        return 1

    def logits(self, chosen: Int64[Tensor, "q"]) -> Float[Tensor, "q mh mw"]:
        """Of one token of each prompt."""
        device = self.low_res_logits.device
        return self.low_res_logits[torch.arange(len(chosen), device=device), chosen.to(device)]

    @torch.inference_mode()
    def masks(self, chosen: Int64[Tensor, "q"]) -> list[Rle]:
        """One token's mask of each prompt, at the photo's size."""
        found: list[Rle] = []
        for masks in self._full_size(self.logits(chosen)):
            found += encode_many(masks.cpu().numpy())
        return found

    @torch.inference_mode()
    def fitting(self, pixels: Int64[np.ndarray, "q 4"]) -> Int64[Tensor, "q"]:
        """Of each prompt the candidate with the highest IoU with a box; the first of equals.

        IoU is that of masks at the photo's size, of which only the pixels are counted.

        Args:
            pixels: Columns and rows [x0, x1), [y0, y1) of each box as (x0, y0, x1, y1).
        """
        candidates = self.low_res_logits[:, self.first_candidate :]
        count = candidates.shape[1]
        inside, whole = [], []
        boxes = iter(np.repeat(pixels, count, axis=0).tolist())
        for masks in self._full_size(candidates.flatten(0, 1)):
            for mask in masks.cpu().numpy():
                x0, y0, x1, y1 = next(boxes)
                inside.append(np.count_nonzero(mask[y0:y1, x0:x1]))
                whole.append(np.count_nonzero(mask))
        area = (pixels[:, 2:] - pixels[:, :2]).prod(axis=1)[:, None]
        shared = np.array(inside, dtype=np.int64).reshape(-1, count)
        iou = shared / (np.array(whole, dtype=np.int64).reshape(-1, count) + area - shared)
        return self.first_candidate + torch.from_numpy(iou).argmax(dim=1)

    def _floats(self) -> int:
        """Logits that one mask at the photo's size takes; SAM's rule fills the square first."""
        pixels = self.resize.image_hw[0] * self.resize.image_hw[1]
        return pixels if self.resize.rule == "squash" else pixels + self.resize.side**2

    def _full_size(self, logits: Float[Tensor, "q mh mw"]) -> Iterator[Bool[Tensor, "some h w"]]:
        """Masks at the photo's size, as many at once as fit in some memory."""
        for some in logits.split(max(1, _FLOATS // self._floats())):
            yield self.resize.masks_back(some[None])[0] > 0
