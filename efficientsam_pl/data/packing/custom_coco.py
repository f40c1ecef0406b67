"""Pack a custom COCO-format set into training and held-out shards."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from efficientsam_pl.data.coco.annotation_file import annotation_bytes
from efficientsam_pl.data.coco.records import CocoError
from efficientsam_pl.data.config import CocoConfig
from efficientsam_pl.data.images.stated import ExifOrientation, exif_setting
from efficientsam_pl.data.packing.coco import (
    CocoEntry,
    CocoSet,
    MaskCounts,
    coco_sources,
    crowds_setting,
    masked_images,
    parse_coco,
)
from efficientsam_pl.data.packing.image_identity import image_identities
from efficientsam_pl.data.packing.images import packed_sample
from efficientsam_pl.data.packing.left_out import count_reasons, reason_against
from efficientsam_pl.data.packing.runner import ArrayShare, cut_into_shards
from efficientsam_pl.data.packing.sources import SourceDigests, SourceNote, SourcePart
from efficientsam_pl.data.packing.split import Group, copies_in, group_equals, split_heldout
from efficientsam_pl.data.packing.writer import IndexNote, PackedSample, Skipped
from efficientsam_pl.plural import counted
from efficientsam_pl.storage.files import full_path

TRAIN, HELDOUT = "train", "heldout"
_SAMPLES_PER_SHARD = 200  # few, so that a set of a few hundred images is packed by all workers


@dataclass(frozen=True)
class _Sides:
    train: tuple[CocoEntry, ...]
    heldout: tuple[CocoEntry, ...]
    skipped: tuple[Skipped, ...]
    copies: int = 0  # images that are kept on the side of an equal one


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

    def sources(self) -> list[SourcePart]:
        """See TracksSources."""
        return coco_sources(self.entries)

    def samples(self) -> Iterator[PackedSample | Skipped | IndexNote | SourceNote]:
        """See Unit."""
        yield from self.skipped
        counts, digests = MaskCounts(), SourceDigests()
        for result in masked_images(self.entries, self.exif_orientation, digests):
            if isinstance(result, Skipped):
                yield result
                continue
            entry, image, jpeg = result
            if any(not a.crowd and a.area > 0 for a in image.annotations):
                counts.add(image.annotations)
                yield packed_sample(image, jpeg)
            else:
                yield Skipped(entry.path, "none of its annotations is a mask that can be used")
        yield from counts.notes()
        yield from digests.notes()


class CustomCoco:
    """Shards `train-000000.tar`, ... and `heldout-000000.tar`, ... of the images with masks.

    Images keep their size, which validation needs. Without a separate file the held-out images
    are a part of the images, chosen by their keys; copies of one image stay on one side. An image
    that both files list, under whatever names, is held out.
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
        self._fraction, self._crowds = config.heldout_fraction, config.crowds
        self._exif_orientation = config.exif_orientation
        self._content = {named: annotation_bytes(*named) for named in self._named()}

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
        described |= exif_setting(self._exif_orientation)
        return described | crowds_setting(self._crowds)

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

    @property
    def copies(self) -> int:
        """Number of images that are copies of another one, wherever the split must mind them."""
        return self._sides.copies

    @cached_property
    def _sides(self) -> _Sides:
        masked, skipped = self._masked(self._train)
        if self._heldout is None:
            if len(masked) < 2:
                raise CocoError(
                    f"{self._train[0]}: {counted(len(masked), 'image')} with masks; at least two "
                    "are needed, one to train on and one to hold out"
                    f"{self._why_not(self._train)}"
                )
            groups = _groups_of_equals(masked, self._train[0])
            keys = [entry.key for entry in masked]
            train, heldout = split_heldout(keys, masked, self._fraction, groups)
            return _Sides(tuple(train), tuple(heldout), tuple(skipped), copies_in(groups))
        heldout, more = self._masked(self._heldout)
        train, both = _without_heldout(masked, heldout)
        for (annotations, images), entries in zip(self._named(), (train, heldout), strict=True):
            if not entries:
                raise CocoError(
                    f"{annotations} has no image with masks"
                    + (" that is not held out" if masked and not train else "")
                    + self._why_not((annotations, images))
                )
        return _Sides(tuple(train), tuple(heldout), (*skipped, *both, *more))

    def _why_not(self, named: tuple[str, str]) -> str:
        reasons = count_reasons(self._sets[named].entries)
        return f" ({reasons})" if reasons else ""

    def findings(self) -> list[str]:
        """Count what was noticed about the files by kind, one line each with an example."""
        return [line for coco_set in self._sets.values() for line in coco_set.findings()]

    @cached_property
    def _sets(self) -> dict[tuple[str, str], CocoSet]:
        options = ("data.coco.images", "data.coco.heldout_images")
        return {
            named: parse_coco(self._content[named], *named, option, self._crowds)
            for named, option in zip(self._named(), options, strict=False)
        }

    def _masked(self, named: tuple[str, str]) -> tuple[list[CocoEntry], list[Skipped]]:
        """Return the images with an object to train on, and what is left out."""
        coco_set = self._sets[named]
        masked, skipped = [], coco_set.skipped()
        for entry in coco_set.entries:
            reason = reason_against(entry)
            if reason is None:
                masked.append(entry)
            else:
                skipped.append(Skipped(entry.path, reason))
        return masked, skipped


def _groups_of_equals(entries: Sequence[CocoEntry], annotations: str) -> list[Group]:
    """Group the indices of entries with equal images.

    Raises:
        CocoError: All images are equal.
    """
    groups = group_equals(image_identities([entry.path for entry in entries]))
    if len(groups) < 2:
        raise CocoError(
            f"{annotations}: its {counted(len(entries), 'image')} with masks are copies of one; at "
            "least two different ones are needed, one to train on and one to hold out"
        )
    return groups


def _without_heldout(
    train: Sequence[CocoEntry], heldout: Sequence[CocoEntry]
) -> tuple[list[CocoEntry], list[Skipped]]:
    """Leave out the training images that are held out, under whatever names."""
    identities = image_identities([entry.path for entry in (*train, *heldout)])
    heldout_paths = dict(zip(identities[len(train) :], (e.path for e in heldout), strict=True))
    kept, both = [], []
    for entry, identity in zip(train, identities, strict=False):
        if identity not in heldout_paths:
            kept.append(entry)
        elif heldout_paths[identity] == entry.path:
            both.append(Skipped(entry.path, "held out"))
        else:
            both.append(Skipped(entry.path, f"held out as {heldout_paths[identity]}"))
    return kept, both
