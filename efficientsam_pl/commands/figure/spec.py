"""What a figure shows: photos, and how each is asked. Read from YAML or JSON; imports no torch."""

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
    """A photo; each way of asking that is given makes a row. Coordinates are its pixels (x, y).

    Their numbers are checked here, since OmegaConf leaves those in nested lists as they are.
    """

    image: str = path("")
    points: tuple[list[Any], ...] = ()  # [x, y]: each a prompt, an object of its own
    clicks: tuple[list[Any], ...] = ()  # [x, y] or [x, y, 0|1]: all together one prompt
    boxes: tuple[list[Any], ...] = ()  # [x0, y0, x1, y1]: each a prompt
    everything: bool = False
    saliency: str | None = path(None)  # a map's file

    def __post_init__(self) -> None:
        if not self.image:
            raise ValueError("image= must name a photo")
        for key, counts in (("points", (2,)), ("clicks", (2, 3)), ("boxes", (4,))):
            for prompt in getattr(self, key):
                _check_numbers(key, prompt, counts)
        for click in self.clicks:
            if len(click) == 3 and click[2] not in (0, 1):
                raise ValueError(f"clicks={click}: the label must be 0 or 1")
        if not (self.points or self.clicks or self.boxes or self.everything or self.saliency):
            raise ValueError(
                f"image={self.image} is asked nothing: give points, clicks, boxes, everything or "
                "saliency"
            )


@dataclass(frozen=True, kw_only=True)
class FigureSpec:
    """The figure."""

    photos: tuple[FigureImage, ...] = ()
    input_title: str = "Input"
    everything: EverythingConfig = NOTEBOOK  # frozen; for every model
    salient: SalientConfig = field(default_factory=SalientConfig)

    def __post_init__(self) -> None:
        if not self.photos:
            raise ValueError("photos= is empty: a figure needs at least one photo")


def read_spec(file: Path) -> FigureSpec:
    """The file's figure; its relative paths are meant from the folder that the file is in.

    Raises:
        ConfigError: No such file, or one that cannot be used; the message names the key.
    """
    spec = loading.load(FigureSpec, [str(file)], [])
    photos = (
        replace(
            photo,
            image=str(file.parent / photo.image),
            saliency=None if photo.saliency is None else str(file.parent / photo.saliency),
        )
        for photo in spec.photos
    )
    return replace(spec, photos=tuple(photos))


def _check_numbers(key: str, prompt: Sequence[Any], counts: tuple[int, ...]) -> None:
    numbers = all(isinstance(v, int | float) and math.isfinite(v) for v in prompt)
    if not numbers or len(prompt) not in counts:
        wanted = " or ".join(map(str, counts))
        raise ValueError(f"{key}={list(prompt)} must be {wanted} numbers")
