"""Plain records of corrupt samples and annotated images. Imports no torch."""

from dataclasses import dataclass

from efficientsam_pl.rle import Rle

IGNORED = 255  # value of a label map where no class counts; so there are at most 255 classes


@dataclass(frozen=True)
class CorruptSample:
    """A sample that could not be used: its place, and what is wrong with it."""

    shard: str
    key: str  # "" for a shard as a whole
    kind: str  # counted by kind: "bad photo", "missing json", ...
    detail: str = ""


@dataclass(frozen=True)
class Instance:
    """An annotated object of an image; `area` is that of the annotation file, in pixels.

    `box_xywh` is the file's too, edges of pixels; None where it states none: the mask's.
    """

    id: int
    category_id: int
    mask: Rle
    area: float
    crowd: bool = False
    box_xywh: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class InstanceImage:
    """An image of an annotated set, not read yet.

    `exhaustive` False (LVIS): a detection of category c counts as wrong only where c is among
    `absent`, the categories that are known not to be there, or has instances and is not among
    `incomplete`, those with objects that are not annotated.
    """

    id: int
    path: str
    image_hw: tuple[int, int]
    instances: tuple[Instance, ...]
    exhaustive: bool = True
    absent: frozenset[int] = frozenset()
    incomplete: frozenset[int] = frozenset()
    key: str | None = None  # of a sample in shards

    def random_key(self) -> str:
        """Name the image for keyed random draws: by its sample's key, else by its id."""
        return str(self.id) if self.key is None else self.key
