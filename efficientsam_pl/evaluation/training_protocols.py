"""How a segmenter is scored on photos with known masks, each protocol by name.

`box`: the tight ground-truth box. `click1`, `click3`, ...: so many clicks, the first of them one
uniform random foreground pixel, seeded for each mask so that ranks do not matter. Later clicks are
drawn likewise, and the candidate with the highest predicted IoU is scored (EfficientSAM's own
protocol); or they are corrections where the answer is wrong, which is fed back as a mask prompt,
and token 0 answers (SAM's, appendix A). `filled_box` is the baseline of a box prompt. All are
scored at the photo's size. `reachable` and `filled_box_grid` are what the model's mask grid allows
(`evaluation.reachable`).

Axes: q masks of a photo, n clicks, h w pixels of the photo, mh mw of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from efficientsam_pl.evaluation.metrics.mean_iou import filled_box_iou
from efficientsam_pl.evaluation.metrics.reachable import GridIous, grid_ious
from efficientsam_pl.geometry import Resize
from efficientsam_pl.keyed_random import sample_key, uniform
from efficientsam_pl.mask_coverage import half_covered
from efficientsam_pl.rle import (
    Rle,
    boxes_xyxy,
    encode_many,
    foreground_points,
    foreground_runs,
    pair_iou,
    run_lengths,
)
from efficientsam_pl.structures import Prediction, Prompts

_FLOATS = 2**24  # of logits at the photo's size that lie in memory at once

# Answers of all mask tokens about one photo (b is 1)
Decode: TypeAlias = Callable[[Prompts], Prediction]
# `grid_ious`, or what has its values already
GridValues: TypeAlias = Callable[[Sequence[Rle], Resize, int], GridIous]


@runtime_checkable
class Correct(Protocol):
    """Clicks where answers are wrong."""

    def __call__(
        self,
        truth: Bool[Tensor, "b q mh mw"],
        answer: Float[Tensor, "b q mh mw"],
        sample_key: Int64[Tensor, "b q"],
        number: int,
    ) -> tuple[Float[Tensor, "b q 2"], Int64[Tensor, "b q"]]:
        """A click a mask in model pixels and its label; `number` clicks have been made."""
        ...


@dataclass(frozen=True)
class Questions:
    """What is asked about every mask; `correct` None: later clicks are random."""

    clicks: tuple[int, ...] = (1, 3)
    at_once: int = 32
    seed: int = 0
    correct: Correct | None = None


@dataclass(frozen=True)
class PromptedImage:
    """A photo whose features wait for prompts, and the masks to find in it, none empty."""

    key: str
    truth: tuple[Rle, ...]
    resize: Resize
    decode: Decode
    device: torch.device


@dataclass(frozen=True)
class ProtocolScores:
    """How some masks of a photo were found: IoU by protocol, and the answers to boxes."""

    box: Float[Tensor, "q"]
    clicks: dict[int, Float[Tensor, "q"]]
    filled_box: Float[Tensor, "q"]
    filled_box_grid: Float[Tensor, "q"]
    reachable: Float[Tensor, "q"]
    detections: list[Rle]
    scores: Float[Tensor, "q"]


def examine(
    photo: PromptedImage, questions: Questions, grid_values: GridValues = grid_ious
) -> Iterator[ProtocolScores]:
    """Asks for every mask of a photo by every protocol, some masks at once."""
    for first in range(0, len(photo.truth), questions.at_once):
        some = photo.truth[first : first + questions.at_once]
        yield _marks(_Part(photo, some, first, questions), grid_values)


def random_clicks(
    photo: str, rles: Sequence[Rle], first: int, seed: int, count: int = 1
) -> Float[np.ndarray, "q n 2"]:
    """Uniform foreground pixels of each mask, (x, y), drawn from seed, photo and place."""
    return drawn_clicks(mask_keys(photo, len(rles), first, seed), rles, count)


def drawn_clicks(
    keys: Int64[Tensor, "q"], rles: Sequence[Rle], count: int
) -> Float[np.ndarray, "q n 2"]:
    """Uniform foreground pixels of each mask, (x, y), drawn from its key; no mask is empty."""
    shares = uniform(keys, count, "click1").double().numpy()
    runs = foreground_runs(run_lengths(rles))
    areas = np.bincount(runs.mask, runs.end - runs.begin)
    ranks = (shares * areas[:, None]).astype(np.int64)
    return foreground_points(runs, rles[0]["size"][0], ranks).astype(np.float32)


def mask_keys(photo: str, count: int, first: int, seed: int) -> Int64[Tensor, "q"]:
    """A key for what is drawn about each mask, of seed, photo and place."""
    return torch.tensor([sample_key(seed, 0, f"{photo}/{first + i}") for i in range(count)])


class _Part:
    """Masks of a photo that are asked for together.

    Their number is filled up to a power of two with copies of the last one, so that compiled
    decoders see few shapes.
    """

    def __init__(
        self, photo: PromptedImage, truth: Sequence[Rle], first: int, questions: Questions
    ) -> None:
        self.photo, self.truth, self.first, self.questions = photo, truth, first, questions
        slots = min(questions.at_once, 1 << (len(truth) - 1).bit_length())
        self._filled = torch.arange(slots).clamp(max=len(truth) - 1)

    def filled(self, values: Tensor) -> Tensor:
        """One row a slot of one row a mask, as a batch of one photo on its device."""
        return values[self._filled].to(self.photo.device)[None]

    def boxes(self) -> Float[Tensor, "q 4"]:
        """Tight boxes in image pixels."""
        return torch.from_numpy(boxes_xyxy(self.truth)).float()

    def clicks(self, count: int) -> Float[Tensor, "1 slots n 2"]:
        """Random clicks in model pixels."""
        photo, seed = self.photo, self.questions.seed
        points = random_clicks(photo.key, self.truth, self.first, seed, count)
        return self.filled(photo.resize.points_forward(torch.from_numpy(points)))

    def found(self, chosen: Prediction) -> list[Rle]:
        """Of an answer with one mask a slot: each mask at the photo's size."""
        logits = chosen.low_res_logits[0, : len(self.truth)].float()
        height, width = self.photo.resize.image_hw
        step = max(1, _FLOATS // (height * width))
        found: list[Rle] = []
        for some in logits.split(step):
            masks = self.photo.resize.masks_back(some)[:, 0] > 0
            found += encode_many(masks.cpu().numpy())
        return found

    def answers(self) -> Iterator[tuple[int, Prediction]]:
        """The answer to each number of clicks that is scored."""
        counts = self.questions.clicks
        if self.questions.correct is not None:
            yield from self._corrected(self.questions.correct)
            return
        points = self.clicks(max(counts))
        for count in counts:
            prompts = Prompts.of_clicks(points[:, :, :count])
            yield count, self.photo.decode(prompts).candidates().best()

    def _corrected(self, correct: Correct) -> Iterator[tuple[int, Prediction]]:
        counts, photo = self.questions.clicks, self.photo
        seed, runs = self.questions.seed, run_lengths(self.truth)
        keys = self.filled(mask_keys(photo.key, len(self.truth), self.first, seed))
        prompts = Prompts.of_clicks(self.clicks(1))
        truth: Tensor | None = None
        for number in range(1, max(counts) + 1):
            chosen = photo.decode(prompts).select("candidates" if number == 1 else "single")
            if number in counts:
                yield number, chosen
            answer = chosen.low_res_logits[:, :, 0]
            if truth is None:
                grid = photo.resize.mask_grid(answer.shape[-1])
                truth = self.filled(torch.from_numpy(half_covered(runs, grid)))
            if number < max(counts):
                point, label = correct(truth, answer, keys, number)
                points = torch.cat([prompts.points_px, point[:, :, None]], dim=2)
                labels = torch.cat([prompts.labels, label[:, :, None]], dim=2)
                prompts = Prompts(points, labels, mask_logits=answer)


def _marks(part: _Part, grid_values: GridValues) -> ProtocolScores:
    boxes, truth = part.boxes(), part.truth
    prompts = Prompts.of_boxes(part.filled(part.photo.resize.boxes_forward(boxes)))
    by_box = part.photo.decode(prompts).candidates().best()
    detections = part.found(by_box)
    grid = grid_values(truth, part.photo.resize, by_box.low_res_logits.shape[-1])
    return ProtocolScores(
        box=torch.from_numpy(pair_iou(detections, truth)),
        clicks={
            count: torch.from_numpy(pair_iou(part.found(one), truth))
            for count, one in part.answers()
        },
        filled_box=torch.from_numpy(filled_box_iou(truth)),
        filled_box_grid=torch.from_numpy(grid.filled_box),
        reachable=torch.from_numpy(grid.reachable),
        detections=detections,
        scores=by_box.iou[0, : len(truth), 0].float().cpu(),
    )
