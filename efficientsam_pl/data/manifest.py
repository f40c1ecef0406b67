"""The entries of `manifest.json`: each shard of a folder with its size, count and checksum.

They hold the times that the shard had with this content too, if they are known.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from efficientsam_pl.data.index import WRONG_FORM, IndexFormatError, ShardIndex, check_format
from efficientsam_pl.data.index_places import folder_of, manifest_path
from efficientsam_pl.data.manifest_file import FORMAT, read_manifest_file, refuse_foreign
from efficientsam_pl.storage.files import atomic_write
from efficientsam_pl.storage.filesystems import describe_error
from efficientsam_pl.storage.locks import write_lock

MANIFEST_VERSION = 1
_ADDED_AGAIN = 5  # times that a manifest is read again after it was written


@dataclass(frozen=True)
class Shard:
    """A shard's manifest entry, with the paths of the shard and its index."""

    path: str
    index: str
    bytes: int
    samples: int
    sha256: str
    faults: tuple[str, ...] = ()
    times: tuple[str, ...] = field(default=(), compare=False)  # that it had with this content


def manifest_entry(path: str, index_path: str, index: ShardIndex) -> Shard:
    """Return the manifest entry of a shard with this index."""
    times = (index.time,) if index.time else ()
    return Shard(path, index_path, index.bytes, len(index), index.sha256, index.faults, times)


def read_manifest(place: str, folder: str) -> dict[str, Shard]:
    """Read the shards of a folder from its manifest; none where there is no manifest of ours.

    Raises:
        IndexFormatError: It is corrupt, or of another version.
    """
    data, home = read_manifest_file(place), folder_of(place)
    if data is None:
        return {}
    try:
        loaded = json.loads(data)
        check_format(loaded, place, FORMAT, MANIFEST_VERSION)
        return {
            f"{folder}/{name}": Shard(
                path=f"{folder}/{name}",
                index=_at(home, entry["index"]),
                bytes=int(entry["bytes"]),
                samples=int(entry["samples"]),
                sha256=entry["sha256"],
                faults=tuple(entry["damage"]),
                times=tuple(map(str, entry.get("times", ()))),
            )
            for name, entry in loaded["shards"].items()
        }
    except WRONG_FORM as error:
        if isinstance(error, IndexFormatError):
            raise
        reason = describe_error(error)
        raise IndexFormatError(f"{place} is corrupt ({reason}); delete it to rebuild it") from error


def write_manifest(folder: str, shards: Sequence[Shard], home: str | None = None) -> None:
    """Add a folder's shards to its manifest, while other processes may add theirs.

    Args:
        folder: Folder of the shards.
        shards: New shards.
        home: Folder of the manifest; None: the shards' folder.
    """
    place = manifest_path(folder, home)
    new = {shard.path: shard for shard in shards}
    if not new:
        return
    with write_lock(place, keep=True):  # adding to it, two processes would lose a line
        for _ in range(_ADDED_AGAIN):
            refuse_foreign(place)
            listed = read_manifest(place, folder)
            if all(s == listed.get(s.path) and s.times == listed[s.path].times for s in shards):
                return  # a remote folder has no lock: another's line may be lost
            listed |= new
            whole = {
                "format": FORMAT,
                "version": MANIFEST_VERSION,
                "shards": {Path(p).name: _to_json(listed[p], place) for p in sorted(listed)},
            }
            with atomic_write(place) as target:
                target.write(json.dumps(whole, indent=1).encode() + b"\n")


def _at(folder: str, name: str) -> str:
    return name if "/" in name else f"{folder}/{name}"


def _to_json(shard: Shard, manifest: str) -> dict[str, Any]:
    entry = asdict(shard)
    del entry["path"]
    if not shard.times:
        del entry["times"]
    entry["damage"] = entry.pop("faults")  # the format's key
    folder, name = shard.index.rsplit("/", 1)
    return entry | {"index": name if folder == folder_of(manifest) else shard.index}
