"""Pack a custom COCO-format set into training and held-out shards."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from efficientsam_pl.data.config import CocoConfig
from efficientsam_pl.data.images.stated import ExifOrientation, exif_setting
from efficientsam_pl.data.packing.coco import (
    CocoEntry,
    CocoError,
    annotation_file,
    check_images,
    entries_of,
    masked_images,
)
from efficientsam_pl.data.packing.images import packed_sample
from efficientsam_pl.data.packing.runner import ArrayShare, cut_into_shards
from efficientsam_pl.data.packing.split import split_heldout
from efficientsam_pl.data.packing.writer import PackedSample, Skipped
from efficientsam_pl.plural import counted
from efficientsam_pl.storage.files import exists, full_path, is_local, same_file

TRAIN, HELDOUT = "train", "heldout"
_SAMPLES_PER_SHARD = 200  # few, so that a set of a few hundred images is packed by all workers


@dataclass(frozen=True)
class _Sides:
    train: tuple[CocoEntry, ...]
    heldout: tuple[CocoEntry, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class MaskedUnit:
    """The images of one shard; those without a usable mask are left out."""

    name: str
    entries: tuple[CocoEntry, ...]
    exif_orientation: ExifOrientation
    skipped: tuple[Skipped, ...] = ()  # what was left out before, reported with the first shard

    @property
    def weight(self) -> int:
        """Number of images."""
        return len(self.entries)

    def samples(self) -> Iterator[PackedSample | Skipped]:
        """See Unit."""
        yield from self.skipped
        for result in masked_images(self.entries, self.exif_orientation):
            if isinstance(result, Skipped):
                yield result
                continue
            entry, image, jpeg = result
            if any(not a.crowd and a.area > 0 for a in image.annotations):
                yield packed_sample(image, jpeg)
            else:
                yield Skipped(entry.path, "none of its annotations is a mask that can be used")


class CustomCoco:
    """Shards `train-000000.tar`, ... and `heldout-000000.tar`, ... of the images with masks.

    Images keep their size, which validation needs. Without a separate file the held-out images
    are a part of the images, chosen by their keys. An image that both files list is held out.
    """

    def __init__(self, config: CocoConfig) -> None:
        """Read the annotation files.

        Raises:
            CocoError: A missing file or folder.
        """
        assert config.annotations is not None
        assert config.images is not None
        self._train = (config.annotations, config.images)
        self._heldout: tuple[str, str] | None = None
        if config.heldout_annotations is not None:
            self._heldout = (config.heldout_annotations, config.heldout_images or config.images)
        self._fraction, self._exif_orientation = config.heldout_fraction, config.exif_orientation
        self._content = {named: annotation_file(*named) for named in self._named()}

    def _named(self) -> list[tuple[str, str]]:
        return [self._train] if self._heldout is None else [self._train, self._heldout]

    def described(self) -> dict[str, Any]:
        """See Source."""
        described: dict[str, Any] = {"kind": "own coco", "samples_per_shard": _SAMPLES_PER_SHARD}
        for side, named in zip((TRAIN, HELDOUT), self._named(), strict=False):
            described[f"{side} annotations"] = hashlib.sha256(self._content[named]).hexdigest()[:16]
            described[f"{side} images"] = full_path(named[1])
        if self._heldout is None:
            described["heldout_fraction"] = self._fraction
        return described | exif_setting(self._exif_orientation)

    def weight(self, share: ArrayShare) -> int:
        """Count the images of the share."""
        return sum(unit.weight for unit in self.units(share))

    def units(self, share: ArrayShare) -> Iterable[MaskedUnit]:
        """See Source.

        Raises:
            CocoError: A file without COCO's keys, or too few images with masks.
        """
        sides, first = self._sides, True
        for side, entries in ((TRAIN, sides.train), (HELDOUT, sides.heldout)):
            for number, chunk in cut_into_shards(entries, _SAMPLES_PER_SHARD, share):
                skipped = sides.skipped if first else ()
                name = f"{side}-{number:06d}"
                yield MaskedUnit(name, chunk, self._exif_orientation, skipped)
                first = False

    @cached_property
    def _sides(self) -> _Sides:
        masked, skipped = self._masked(self._train, "data.coco.images")
        if self._heldout is None:
            if len(masked) < 2:
                raise CocoError(
                    f"{self._train[0]}: {counted(len(masked), 'image')} with masks; at least two "
                    "are needed, one to train on and one to hold out"
                )
            train, heldout = split_heldout([entry.key for entry in masked], masked, self._fraction)
            return _Sides(tuple(train), tuple(heldout), tuple(skipped))
        heldout, more = self._masked(self._heldout, "data.coco.heldout_images")
        heldout_files = {same_file(entry.path) for entry in heldout}
        train = [entry for entry in masked if same_file(entry.path) not in heldout_files]
        for (annotations, _), entries in zip(self._named(), (train, heldout), strict=True):
            if not entries:
                raise CocoError(
                    f"{annotations} has no image with masks"
                    + (" that is not held out" if masked and not train else "")
                )
        both = [Skipped(e.path, "held out") for e in masked if same_file(e.path) in heldout_files]
        return _Sides(tuple(train), tuple(heldout), (*skipped, *both, *more))

    def _masked(self, named: tuple[str, str], key: str) -> tuple[list[CocoEntry], list[Skipped]]:
        """Return the images with an annotation that may be a mask, and those left out.

        Raises:
            CocoError: No image is in the folder, which the user names by `key`.
        """
        entries, orphans = entries_of(self._content[named], *named)
        check_images(entries, named[0], key, named[1])
        skipped = sorted(orphans, key=lambda orphan: orphan.what)
        is_near = is_local(named[1])  # a remote store would need a request for each image
        masked = []
        for entry in entries:
            if not any(map(_may_be_mask, entry.annotations)):
                skipped.append(Skipped(entry.path, "it has no mask"))
            elif is_near and not exists(entry.path):
                skipped.append(Skipped(entry.path, "no such file"))
            else:
                masked.append(entry)
        return masked, skipped


def _may_be_mask(annotation: dict[str, Any]) -> bool:
    """Return whether it looks like a mask to train on; the full check needs the image."""
    segmentation = annotation.get("segmentation")
    if not segmentation or annotation.get("iscrowd", 0):
        return False
    return not isinstance(segmentation, list) or all(
        isinstance(polygon, list) and len(polygon) >= 6 for polygon in segmentation
    )
