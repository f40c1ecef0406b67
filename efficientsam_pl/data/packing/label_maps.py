"""Pack images with label maps: two folders whose files have the same names, ADE20K's among them.

Frames of a video are adjacent in such folders, so images are distributed over the shards in one
shuffled order that depends on their names alone.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import UInt8

from efficientsam_pl.data.images.decode import decode_smaller
from efficientsam_pl.data.images.label_map import (
    decode_label_map,
    encode_label_map,
    resize_labels,
)
from efficientsam_pl.data.images.stated import (
    ExifOrientation,
    exif_setting,
    orientation_to_apply,
)
from efficientsam_pl.data.packing.image_tree import leave_out_of_tree, list_tree
from efficientsam_pl.data.packing.images import (
    JPEG_QUALITY,
    encode_jpeg,
    limited_size,
    shrink_image,
    stored_jpeg,
)
from efficientsam_pl.data.packing.inventory import Inventory, file_kind
from efficientsam_pl.data.packing.label_classes import LabelClasses
from efficientsam_pl.data.packing.runner import ArrayShare, cut_into_shards
from efficientsam_pl.data.packing.sample_keys import file_keys
from efficientsam_pl.data.packing.sources import SourceDigests, SourceNote, SourcePart
from efficientsam_pl.data.packing.writer import IndexNote, PackedSample, Skipped
from efficientsam_pl.data.schema import LABEL_SUFFIX, CorruptSampleError
from efficientsam_pl.errors import UserError
from efficientsam_pl.records import IGNORED
from efficientsam_pl.storage.files import full_path, read_file

_NO_IMAGE = "label map without an image"
CLASS_IMAGES, WHOLLY_IGNORED = "class_images", "ignored_images"  # of an index's further facts


@dataclass(frozen=True)
class LabelledPair:
    """An image file and its label map's; `name` is the image's, below the folder of images."""

    key: str
    name: str
    image: str
    labels: str


@dataclass(frozen=True)
class PairSettings:
    """Settings of a sample's content: its classes, size and frame."""

    classes: LabelClasses
    long_side: int | None = None
    exif_orientation: ExifOrientation = "apply"


@dataclass(frozen=True)
class LabelMapUnit:
    """The images of one shard."""

    name: str
    pairs: tuple[LabelledPair, ...]
    settings: PairSettings

    @property
    def weight(self) -> int:
        """Number of images."""
        return len(self.pairs)

    def sources(self) -> list[SourcePart]:
        """See TracksSources."""
        return [SourcePart(path) for pair in self.pairs for path in (pair.image, pair.labels)]

    def samples(self) -> Iterator[PackedSample | Skipped | IndexNote | SourceNote]:
        """See Unit."""
        digests, counts = SourceDigests(), _ClassCounts(len(self.settings.classes.names))
        for pair in self.pairs:
            try:
                sample, classes = _packed(pair, self.settings, digests)
            except _LabelMapError as error:
                digests.mark_broken(pair.labels)
                yield Skipped(pair.name, str(error))
            except (OSError, CorruptSampleError) as error:
                digests.mark_broken(pair.image)
                yield Skipped(pair.name, str(error))
            else:
                counts.add(classes)
                yield sample
        yield counts.note()
        yield from digests.notes()


@dataclass
class _ClassCounts:
    """Images of a shard by the classes in them; `ignored` have none."""

    classes: int
    images: Counter[int] = field(default_factory=Counter)
    ignored: int = 0

    def add(self, present: Sequence[int]) -> None:
        self.images.update(present)
        self.ignored += not present

    def note(self) -> IndexNote:
        by_class = [self.images[number] for number in range(self.classes)]
        return IndexNote({CLASS_IMAGES: by_class, WHOLLY_IGNORED: self.ignored})


class _LabelMapError(Exception):
    """A label map that cannot be used with its image."""


def _packed(
    pair: LabelledPair, settings: PairSettings, digests: SourceDigests
) -> tuple[PackedSample, list[int]]:
    """Build a sample, and list its classes.

    Raises:
        _LabelMapError: The label map is missing, or cannot be used.
        CorruptSampleError, OSError: The image cannot be used, or has another size.
    """
    numbers = _class_numbers(pair, settings.classes, digests)
    data = read_file(pair.image)
    digests.add_file(pair.image, data)
    stated = (numbers.shape[0], numbers.shape[1])
    applied, turn = orientation_to_apply(data, stated, settings.exif_orientation)
    pixels = decode_smaller(data, 1.0, applied).pixels
    small = stated if settings.long_side is None else limited_size(stated, settings.long_side)
    if small == stated:
        kept = stored_jpeg(data, turn)
        jpeg = encode_jpeg(pixels) if kept is None else kept
    else:
        jpeg = encode_jpeg(shrink_image(pixels, small))
    numbers = resize_labels(numbers, small)
    classes = [number for number in np.unique(numbers).tolist() if number != IGNORED]
    files = {"jpg": jpeg, LABEL_SUFFIX: encode_label_map(numbers)}
    return PackedSample(pair.key, files, len(classes), turn), classes


def _class_numbers(
    pair: LabelledPair, classes: LabelClasses, digests: SourceDigests
) -> UInt8[np.ndarray, "h w"]:
    try:
        data = read_file(pair.labels)
        digests.add_file(pair.labels, data)
        return classes.numbers(decode_label_map(data))
    except FileNotFoundError as error:
        raise _LabelMapError(f"missing label map: no such file: {pair.labels}") from error
    except (OSError, CorruptSampleError) as error:
        raise _LabelMapError(f"{error} ({pair.labels})") from error


class LabelMaps:
    """Images with label maps in shards `labels-000000.tar`, ...; upright JPEGs are kept."""

    def __init__(
        self, images: str, labels: str, settings: PairSettings, samples_per_shard: int
    ) -> None:
        if full_path(images).rstrip("/") == full_path(labels).rstrip("/"):
            raise UserError(f"--labels: {labels} is the folder of --images")
        pairs, self._inventory = list_pairs(images, labels)
        if not pairs:
            left_out = self._inventory.left_out(named=True)
            raise UserError(
                f"--images: no image in {images}" + (f"; {left_out}" if left_out else "")
            )
        self._inventory.classes = settings.classes.names
        names = hashlib.sha256("\n".join(pair.key for pair in pairs).encode()).digest()
        order = np.random.default_rng(list(names)).permutation(len(pairs))
        self._pairs = [pairs[i] for i in order]
        self._names = names.hex()[:16]
        self._settings, self._limit = settings, samples_per_shard

    def inventory(self) -> Inventory:
        """See Inventoried."""
        return self._inventory

    def described(self) -> dict[str, Any]:
        """See Source."""
        classes = self._settings.classes
        listed = hashlib.sha256("\n".join(classes.names).encode()).hexdigest()[:16]
        return {
            "kind": "label maps",
            "photos": len(self._pairs),
            "names": self._names,
            "classes": listed,
            "first_class": classes.first,
            "ignored": sorted(classes.ignored),
            "long_side": self._settings.long_side,
            "jpeg_quality": JPEG_QUALITY,
            "samples_per_shard": self._limit,
            **exif_setting(self._settings.exif_orientation),
        }

    def weight(self, share: ArrayShare) -> int:
        """Count the images of the share."""
        return sum(unit.weight for unit in self.units(share))

    def units(self, share: ArrayShare) -> Iterator[LabelMapUnit]:
        """See Source."""
        for number, pairs in cut_into_shards(self._pairs, self._limit, share):
            yield LabelMapUnit(f"labels-{number:06d}", pairs, self._settings)


def list_pairs(images: str, labels: str) -> tuple[list[LabelledPair], Inventory]:
    """Pair the images of a folder with the PNGs of another by their paths without suffix.

    An image without one is paired with the PNG that is missing. The pairs are sorted by key.
    """
    image_root, label_root = (full_path(folder).rstrip("/") for folder in (images, labels))
    listing, _ = list_tree(image_root)
    maps, _ = list_tree(label_root)
    inventory = Inventory()
    leave_out_of_tree(listing, inventory)
    leave_out_of_tree(maps, inventory)
    by_stem: dict[str, str] = {}
    for name in maps.images:
        if name.lower().endswith(".png"):
            by_stem.setdefault(_stem(name), name)
        else:
            inventory.leave_out(file_kind(name), name)
    keys, inventory.renamed = file_keys(
        [(_folder(name), PurePosixPath(name).stem, name) for name in listing.images]
    )
    pairs = [
        LabelledPair(
            key,
            name,
            f"{image_root}/{name}",
            f"{label_root}/{by_stem.get(_stem(name), f'{_stem(name)}.png')}",
        )
        for name, key in zip(listing.images, keys, strict=True)
    ]
    inventory.leave_out_all(_NO_IMAGE, sorted(_without_image(by_stem, listing.images)))
    return sorted(pairs, key=lambda pair: pair.key), inventory


def _without_image(by_stem: dict[str, str], images: Iterable[str]) -> list[str]:
    stems = {_stem(name) for name in images}
    return [name for stem, name in by_stem.items() if stem not in stems]


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _folder(name: str) -> str:
    return name.rpartition("/")[0]
