"""A COCO-format set of one's own as shards of both sides: photos to learn from, photos held out."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from efficientsam_pl.data.config import CocoConfig
from efficientsam_pl.data.packing.coco import (
    JPEG_START,
    CocoEntry,
    CocoError,
    annotation_file,
    check_images,
    entries_of,
    masked_images,
)
from efficientsam_pl.data.packing.images import sample_of
from efficientsam_pl.data.packing.runner import ArrayShare, cut_into_shards
from efficientsam_pl.data.packing.split import parted
from efficientsam_pl.data.packing.writer import PackedSample, Skipped
from efficientsam_pl.plural import counted
from efficientsam_pl.storage.files import exists, full_path, is_local, same_file

TRAIN, HELDOUT = "train", "heldout"
_SAMPLES_PER_SHARD = 200  # few, so that a set of some hundred photos is packed by all workers


@dataclass(frozen=True)
class _Sides:
    train: tuple[CocoEntry, ...]
    heldout: tuple[CocoEntry, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class MaskedUnit:
    """Photos of one shard; those of which no mask can be used are left out."""

    name: str
    entries: tuple[CocoEntry, ...]
    skipped: tuple[Skipped, ...] = ()  # what was left out before, told with the first shard

    @property
    def weight(self) -> int:
        """Photos."""
        return len(self.entries)

    def samples(self) -> Iterator[PackedSample | Skipped]:
        """See Unit."""
        yield from self.skipped
        for found in masked_images(self.entries):
            if isinstance(found, Skipped):
                yield found
                continue
            entry, photo, data = found
            if any(not a.crowd and a.area > 0 for a in photo.annotations):
                yield sample_of(photo, data if data.startswith(JPEG_START) else None)
            else:
                yield Skipped(entry.path, "none of its annotations is a mask that can be used")


class CustomCoco:
    """Shards `train-000000.tar`, ... and `heldout-000000.tar`, ... of the photos with masks.

    Photos keep their size: they are validated on as they are. Without a file of its own the
    held-out side is a part of the photos, chosen by their keys. A photo that both files list is
    held out.
    """

    def __init__(self, config: CocoConfig) -> None:
        """Reads the annotation files.

        Raises:
            CocoError: A missing file or folder.
        """
        assert config.annotations is not None
        assert config.images is not None
        self._train = (config.annotations, config.images)
        self._heldout: tuple[str, str] | None = None
        if config.heldout_annotations is not None:
            self._heldout = (config.heldout_annotations, config.heldout_images or config.images)
        self._fraction = config.heldout_fraction
        self._content = {named: annotation_file(*named) for named in self._named()}

    def _named(self) -> list[tuple[str, str]]:
        return [self._train] if self._heldout is None else [self._train, self._heldout]

    def described(self) -> dict[str, Any]:
        """See Source."""
        told: dict[str, Any] = {"kind": "own coco", "samples_per_shard": _SAMPLES_PER_SHARD}
        for side, named in zip((TRAIN, HELDOUT), self._named(), strict=False):
            told[f"{side} annotations"] = hashlib.sha256(self._content[named]).hexdigest()[:16]
            told[f"{side} images"] = full_path(named[1])
        if self._heldout is None:
            told["heldout_fraction"] = self._fraction
        return told

    def weight(self, share: ArrayShare) -> int:
        """See Source: photos."""
        return sum(unit.weight for unit in self.units(share))

    def units(self, share: ArrayShare) -> Iterable[MaskedUnit]:
        """See Source.

        Raises:
            CocoError: A file without COCO's keys, or too few photos with masks.
        """
        sides, first = self._sides, True
        for side, entries in ((TRAIN, sides.train), (HELDOUT, sides.heldout)):
            for number, some in cut_into_shards(entries, _SAMPLES_PER_SHARD, share):
                yield MaskedUnit(f"{side}-{number:06d}", some, sides.skipped if first else ())
                first = False

    @cached_property
    def _sides(self) -> _Sides:
        masked, skipped = self._masked(self._train, "data.coco.images")
        if self._heldout is None:
            if len(masked) < 2:
                raise CocoError(
                    f"{self._train[0]}: {counted(len(masked), 'photo')} with masks; at least two "
                    "are needed, one to learn from and one to hold out"
                )
            train, heldout = parted([entry.key for entry in masked], masked, self._fraction)
            return _Sides(tuple(train), tuple(heldout), tuple(skipped))
        heldout, more = self._masked(self._heldout, "data.coco.heldout_images")
        apart = {same_file(entry.path) for entry in heldout}
        train = [entry for entry in masked if same_file(entry.path) not in apart]
        for (annotations, _), entries in zip(self._named(), (train, heldout), strict=True):
            if not entries:
                raise CocoError(
                    f"{annotations} has no photo with masks"
                    + (" that is not held out" if masked and not train else "")
                )
        both = [Skipped(e.path, "held out") for e in masked if same_file(e.path) in apart]
        return _Sides(tuple(train), tuple(heldout), (*skipped, *both, *more))

    def _masked(self, named: tuple[str, str], key: str) -> tuple[list[CocoEntry], list[Skipped]]:
        """Photos with an annotation that may be a mask, and what is left out.

        Raises:
            CocoError: Not a photo is in the folder, which the user names by `key`.
        """
        entries, orphans = entries_of(self._content[named], *named)
        check_images(entries, named[0], key, named[1])
        skipped = sorted(orphans, key=lambda orphan: orphan.what)
        is_near = is_local(named[1])  # a distant store would be asked for each of its photos
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
    """Whether it looks like a mask to learn from; more is known with the photo."""
    segmentation = annotation.get("segmentation")
    if not segmentation or annotation.get("iscrowd", 0):
        return False
    return not isinstance(segmentation, list) or all(
        isinstance(polygon, list) and len(polygon) >= 6 for polygon in segmentation
    )
