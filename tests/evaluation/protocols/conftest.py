"""A small segmenter that looks at colours, and images whose masks differ from its predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, label
from torch import Tensor

from efficientsam_pl import rle
from efficientsam_pl.evaluation.interfaces import ImagePrompts
from efficientsam_pl.records import Instance
from efficientsam_pl.structures import Label


@dataclass(frozen=True)
class Painted:
    """Masks of all tokens as arrays [q, k, h, w]."""

    every: np.ndarray
    iou: Tensor
    first_candidate: int

    def masks(self, chosen: Tensor) -> list[rle.Rle]:
        return [rle.encode(own[k]) for own, k in zip(self.every, chosen.tolist(), strict=True)]

    def logits(self, chosen: Tensor) -> Tensor:
        own = torch.from_numpy(self.every)[torch.arange(len(chosen)), chosen]
        return torch.where(own, 1.0, -1.0)


@dataclass
class Regions:
    """Predicts connected regions of one colour; what it does is the same on a flipped image.

    Token 0: the regions of all positive clicks and the mask that is fed back, without those of the
    negative clicks. Candidates: all pixels of the first click's colour, its region, and the region
    grown by two pixels. A box is a click on its middle, and cuts everything off outside of it.
    """

    negative_clicks: bool = True
    mask_prompts: bool = True
    first_candidate: int = 1
    seen: list[ImagePrompts] = field(default_factory=list)

    def embed(self, image: np.ndarray) -> RegionsImage:
        return RegionsImage(self, image[..., 0])


@dataclass(frozen=True)
class RegionsImage:
    owner: Regions
    grey: np.ndarray

    def predict(self, prompts: ImagePrompts) -> Painted:
        self.owner.seen.append(prompts)
        every = np.stack([self._answer(prompts, place) for place in range(len(prompts))])
        every = every[:, 1 - self.owner.first_candidate :]
        share = every.sum(axis=(2, 3)) / self.grey.size
        # the region itself is thought best where it is small, else the grown one
        iou = torch.from_numpy(np.abs(np.sin(25 * share))).float()
        return Painted(every, iou, self.owner.first_candidate)

    def _answer(self, prompts: ImagePrompts, place: int) -> np.ndarray:
        clicks = list(
            zip(prompts.points_xy[place].tolist(), prompts.labels[place].tolist(), strict=True)
        )
        inside = np.ones(self.grey.shape, dtype=bool)
        if prompts.boxes_xyxy is not None:
            x0, y0, x1, y1 = prompts.boxes_xyxy[place].tolist()
            clicks.append((((x0 + x1) / 2, (y0 + y1) / 2), Label.POSITIVE))
            y, x = np.mgrid[: self.grey.shape[0], : self.grey.shape[1]]
            inside = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
        x, y = clicks[0][0]
        own = self._region(x, y)
        clear = np.zeros_like(own)
        if prompts.mask_logits is not None:
            clear |= prompts.mask_logits[place].numpy() > 0
        for (x, y), kind in clicks:
            clear = clear & ~self._region(x, y) if kind == 0 else clear | self._region(x, y)
        colour = self.grey == self.grey[own][0]
        return np.stack([clear, colour, own, binary_dilation(own, iterations=2)]) & inside

    def _region(self, x: float, y: float) -> np.ndarray:
        row, column = int(y), int(x)
        regions, _ = label(self.grey == self.grey[row, column])
        return regions == regions[row, column]


@dataclass(frozen=True)
class Toy:
    image: np.ndarray
    instances: tuple[Instance, ...]


def _blocks(draw: np.random.Generator, colours: int, hw: tuple[int, int]) -> np.ndarray:
    coarse = draw.integers(0, colours, (hw[0] // 6 + 1, hw[1] // 6 + 1))
    return np.kron(coarse, np.ones((6, 6), dtype=int))[: hw[0], : hw[1]]


@pytest.fixture(scope="session")
def toy() -> Toy:
    """Blocks of three colours, and round objects that have nothing to do with them."""
    draw, (height, width) = np.random.default_rng(3), (37, 52)
    grey = (_blocks(draw, 3, (height, width)) * 100).astype(np.uint8)
    y, x = np.mgrid[:height, :width]
    discs = [
        np.hypot(y - draw.integers(height), x - draw.integers(width)) < draw.integers(2, 14)
        for _ in range(17)
    ]
    instances = tuple(
        Instance(id=1000 + 7 * i, category_id=i % 3, mask=rle.encode(disc), area=float(disc.sum()))
        for i, disc in enumerate(discs)
    )
    return Toy(np.repeat(grey[..., None], 3, axis=2), instances)


@pytest.fixture
def regions() -> Callable[..., Regions]:
    return Regions
