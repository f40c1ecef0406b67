"""Tar shards as tables of samples: where each file lies, so that any sample is one seek away."""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec

from efficientsam_pl.errors import UserError
from efficientsam_pl.structures import Damage

# WebDataset's rule: the first dot after the folders; what has none is no part of a sample
_KEY_AND_ENDING = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")


class ShardsError(UserError):
    """Shards that cannot be used at all; one line for the user."""


@dataclass(frozen=True)
class Member:
    """One file in a tar: first byte and size."""

    offset: int
    size: int


@dataclass(frozen=True)
class Sample:
    """One sample: the shard it lies in, its key, and its files by ending."""

    shard: str
    key: str
    members: dict[str, Member]


@dataclass(frozen=True)
class ShardIndex:
    """The samples of a data set, shard by shard, and the shards that broke off."""

    shards: tuple[tuple[Sample, ...], ...]
    damage: tuple[Damage, ...]

    def sizes(self) -> list[int]:
        """Samples in each shard."""
        return [len(samples) for samples in self.shards]

    def samples(self) -> list[Sample]:
        """All samples, in the shards' order."""
        return [sample for shard in self.shards for sample in shard]


def index_shards(pattern: str) -> ShardIndex:
    """One pass over the headers of every shard that matches an fsspec pattern.

    Raises:
        ShardsError: No shard matches, or none of them holds a sample.
    """
    files = fsspec.open_files(pattern, "rb") if pattern else []
    paths = sorted(file.full_name for file in files)
    if not paths:
        raise ShardsError(f"no shard matches {pattern!r}")
    shards: list[tuple[Sample, ...]] = []
    damage: list[Damage] = []
    for path in paths:
        samples, broken = _index_shard(path)
        shards.append(samples)
        damage.extend(broken)
    if not any(shards):
        raise ShardsError(f"no sample in the {len(paths)} shards that match {pattern!r}")
    return ShardIndex(tuple(shards), tuple(damage))


def read_files(sample: Sample) -> dict[str, bytes]:
    """The files of one sample by ending, read by their offsets.

    Raises:
        OSError: The shard vanished or is shorter than its index says.
    """
    with fsspec.open(sample.shard, "rb") as file:
        return {ending: _read(file, member) for ending, member in sample.members.items()}


def _index_shard(path: str) -> tuple[tuple[Sample, ...], tuple[Damage, ...]]:
    grouped: dict[str, dict[str, Member]] = {}
    damage = []
    try:
        with fsspec.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in _files(tar):
                named = _KEY_AND_ENDING.fullmatch(member.name)
                if named:
                    place = Member(member.offset_data, member.size)
                    grouped.setdefault(named[1], {})[named[2].lower()] = place
    except (OSError, tarfile.TarError) as error:
        damage.append(Damage(path, "", f"broken tar: {error}"))
    return tuple(Sample(path, key, members) for key, members in grouped.items()), tuple(damage)


def _files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        if member.isfile():
            member.name = member.name.removeprefix("./")
            yield member
        tar.members = []  # type: ignore[attr-defined]  # it keeps every header it has seen


def _read(file: Any, member: Member) -> bytes:  # fsspec's files have no type in common
    file.seek(member.offset)
    data: bytes = file.read(member.size)
    if len(data) != member.size:
        raise OSError(f"{len(data)} of {member.size} bytes")
    return data
