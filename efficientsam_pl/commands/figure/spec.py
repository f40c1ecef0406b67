"""The spec of a figure: images and their prompts, from YAML or JSON; imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from efficientsam_pl.config import load as loading
from efficientsam_pl.config.fields import path
from efficientsam_pl.inference.automask.config import NOTEBOOK, EverythingConfig
from efficientsam_pl.inference.salient.config import SalientConfig


@dataclass(frozen=True, kw_only=True)
class FigureImage:
    """An image; each kind of prompts gives a row. Coordinates are image pixels (x, y).

    Numbers are checked here because OmegaConf does not check them in nested lists.
    """

    image: str = path("")
    points: tuple[list[Any], ...] = ()  # [x, y]: each is a prompt for an object
    clicks: tuple[list[Any], ...] = ()  # [x, y] or [x, y, 0|1]: all together are a single prompt
    boxes: tuple[list[Any], ...] = ()  # [x0, y0, x1, y1]: each is a prompt
    everything: bool = False
    saliency: str | None = path(None)  # file of a saliency map

    def __post_init__(self) -> None:
        if not self.image:
            raise ValueError("image= must name an image file")
        for key, counts in (("points", (2,)), ("clicks", (2, 3)), ("boxes", (4,))):
            for prompt in getattr(self, key):
                _check_numbers(key, prompt, counts)
        for click in self.clicks:
            if len(click) == 3 and click[2] not in (0, 1):
                raise ValueError(f"clicks={click}: the label must be 0 or 1")
        if not (self.points or self.clicks or self.boxes or self.everything or self.saliency):
            raise ValueError(
                f"image={self.image} has no prompt: give points, clicks, boxes, everything or "
                "saliency"
            )


@dataclass(frozen=True, kw_only=True)
class FigureSpec:
    """A figure."""

    photos: tuple[FigureImage, ...] = ()
    input_title: str = "Input"
    everything: EverythingConfig = NOTEBOOK  # frozen; for every model
    salient: SalientConfig = field(default_factory=SalientConfig)

    def __post_init__(self) -> None:
        if not self.photos:
            raise ValueError("photos= is empty: a figure needs at least one image")


def read_spec(file: Path) -> FigureSpec:
    """Read a figure's spec; relative paths are relative to the folder of the file.

    Raises:
        ConfigError: No such file, or an invalid spec; the message names the key.
    """
    spec = loading.load(FigureSpec, [str(file)], [])
    images = (
        replace(
            image,
            image=str(file.parent / image.image),
            saliency=None if image.saliency is None else str(file.parent / image.saliency),
        )
        for image in spec.photos
    )
    return replace(spec, photos=tuple(images))


def _check_numbers(key: str, prompt: Sequence[Any], counts: tuple[int, ...]) -> None:
    numbers = all(isinstance(v, int | float) and math.isfinite(v) for v in prompt)
    if not numbers or len(prompt) not in counts:
        allowed = " or ".join(map(str, counts))
        raise ValueError(f"{key}={list(prompt)} must be {allowed} numbers")
