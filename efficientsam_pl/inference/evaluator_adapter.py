"""Our models as `PromptableModel`s, for `evaluate` and for validation while training.

Axes: q prompts on one image, k mask tokens, mh mw logits of the decoder, h w pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.interfaces import ImagePrompts
from efficientsam_pl.evaluation.metrics.reachable import GridIous, grid_ious
from efficientsam_pl.geometry import Resize
from efficientsam_pl.inference.predictor import EmbeddedImage, Predictor
from efficientsam_pl.inference.prompt_inputs import PromptError, check_known
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.rle import Rle, encode_many
from efficientsam_pl.structures import Prediction, Prompts

_FLOATS = 2**24  # of logits at the image's size that lie in memory at once
# Prompts a call of the decoder. A CPU is as fast with four as with more
_AT_ONCE = {"cpu": 4}
_AT_ONCE_ELSEWHERE = 32

Precision: TypeAlias = Literal["fp32", "bf16"]
# `grid_ious`, or its cached values
GridValues: TypeAlias = Callable[[Sequence[Rle], Resize, int], GridIous]


class EvaluatorModel:
    """A segmenter ready to be evaluated.

    The decoder is always called with exactly `at_once` prompts, padded with copies of the last:
    calls of another shape round otherwise. So a prediction is the same to the last bit however many
    prompts a protocol makes together and whatever their order. Another `at_once`, device, number of
    threads or torch may change a logit by some 1e-6.

    Args:
        model: On its device.
        at_once: Prompts a call of the decoder; None: 4 on a CPU, 32 elsewhere.
        precision: Of encoder and decoder; bf16: by autocast, as training computes.
        grid_values: Scores masks after the model's mask grid.
    """

    def __init__(
        self,
        model: Segmenter,
        at_once: int | None = None,
        precision: Precision = "fp32",
        grid_values: GridValues = grid_ious,
    ) -> None:
        if at_once is not None and at_once < 1:
            raise UserError(f"at_once={at_once} must be at least 1")
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.at_once = at_once or _AT_ONCE.get(self.device.type, _AT_ONCE_ELSEWHERE)
        self.precision, self.grid_values = precision, grid_values

    @property
    def negative_clicks(self) -> bool:
        """Whether the model accepts clicks with label 0."""
        return self.model.config.prompts.negative_clicks

    @property
    def mask_prompts(self) -> bool:
        """Whether the model accepts earlier masks."""
        return self.model.config.prompts.mask_prompts

    def autocast(self) -> torch.autocast:
        """Make the context in which encoder and decoder run."""
        bf16 = self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16)

    def embed(self, image: UInt8[np.ndarray, "h w 3"]) -> EvaluatorImage:
        """Encode an RGB image.

        Raises:
            PromptError: An image that `Predictor.embed` does not take.
        """
        with self.autocast():
            return EvaluatorImage(self, Predictor(self.model).embed(image))

    def embedded(self, features: Float[Tensor, "1 c g g"], resize: Resize) -> EvaluatorImage:
        """Wrap an image that the model has encoded in `autocast`."""
        return EvaluatorImage(self, EmbeddedImage(self.model, features, resize))


@dataclass(frozen=True)
class EvaluatorImage:
    """The features of an image."""

    source: EvaluatorModel
    embedded: EmbeddedImage

    @torch.no_grad()  # weights that FSDP2 gathers in inference mode could not be trained
    def predict(self, prompts: ImagePrompts) -> ModelCandidates:
        """Predict the masks of all tokens.

        Raises:
            PromptError: A kind of prompt, or more points, than the model knows.
        """
        model, resize = self.embedded.model, self.embedded.resize
        check_known(prompts.labels, model.config.prompts)
        logits, iou = [], []
        for chunk, count in self._chunks(prompts):
            try:
                with self.source.autocast():
                    prediction: Prediction = model.decode(self.embedded.features, chunk)
            except ValueError as error:
                raise PromptError(str(error)) from error
            logits.append(prediction.low_res_logits[0, :count].float())
            iou.append(prediction.iou[0, :count].float().cpu())
        if not logits:
            raise PromptError("no prompt")
        return ModelCandidates(torch.cat(logits), torch.cat(iou), resize)

    def grid_ious(self, truth: Sequence[Rle]) -> GridIous:
        """Score true masks and their boxes after the decoder's mask grid."""
        cells = 4 * self.embedded.model.config.encoder.grid()
        return self.source.grid_values(truth, self.embedded.resize, cells)

    def _chunks(self, prompts: ImagePrompts) -> Iterator[tuple[Prompts, int]]:
        """Yield prompts in model pixels, `at_once` each, and how many of them are no padding."""
        device, resize = self.embedded.features.device, self.embedded.resize
        boxes, masks = prompts.boxes_xyxy, prompts.mask_logits
        points = resize.points_forward(prompts.points_xy)  # padding, below 0, stays there
        boxes = None if boxes is None else resize.boxes_forward(boxes)
        at_once = self.source.at_once
        for first in range(0, len(prompts), at_once):
            count = min(at_once, len(prompts) - first)
            chunk = first + torch.arange(at_once).clamp(max=count - 1)
            yield (
                Prompts(
                    points[chunk][None],
                    prompts.labels[chunk][None],
                    None if boxes is None else boxes[chunk][None],
                    None if masks is None else masks[chunk.to(masks.device)][None],
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
        """1: token 0 is meant for unambiguous prompts."""
        return 1

    def logits(self, chosen: Int64[Tensor, "q"]) -> Float[Tensor, "q mh mw"]:
        """Return the logits of one token of each prompt."""
        device = self.low_res_logits.device
        return self.low_res_logits[torch.arange(len(chosen), device=device), chosen.to(device)]

    @torch.no_grad()
    def masks(self, chosen: Int64[Tensor, "q"]) -> list[Rle]:
        """Return one token's mask of each prompt, at the image's size."""
        rles: list[Rle] = []
        for masks in self._full_size(self.logits(chosen)):
            rles += encode_many(masks.cpu().numpy())
        return rles

    @torch.no_grad()
    def fitting(self, pixels: Int64[np.ndarray, "q 4"]) -> Int64[Tensor, "q"]:
        """Choose the candidate with the highest IoU with a box; the first of equals.

        IoU is that of masks at the image's size, of which only the pixels are counted.

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
        """Count the logits of one mask at the image's size; SAM's rule fills the square first."""
        pixels = self.resize.image_hw[0] * self.resize.image_hw[1]
        return pixels if self.resize.rule == "squash" else pixels + self.resize.side**2

    def _full_size(self, logits: Float[Tensor, "q mh mw"]) -> Iterator[Bool[Tensor, "chunk h w"]]:
        """Yield masks at the image's size, as many at once as fit in bounded memory."""
        for chunk in logits.split(max(1, _FLOATS // self._floats())):
            yield self.resize.masks_back(chunk[None])[0] > 0
