"""Compare finished shards with their sources, and describe the sources that changed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from efficientsam_pl.data.images.files import printable
from efficientsam_pl.data.index import ShardIndex, from_bytes, to_bytes
from efficientsam_pl.data.packing.sources import SourceChanges, SourcePart, compare_sources
from efficientsam_pl.plural import counted
from efficientsam_pl.storage.files import atomic_write, list_files, read_file

_INDEX_SUFFIX = ".tar.index.json"


def compare_shard(
    place: str, index: ShardIndex, parts: Sequence[SourcePart] | None
) -> SourceChanges | None:
    """Compare a shard with its sources; None: an earlier version did not record them.

    Where sources were merely touched or moved, their new times are written into the index, so that
    their checksums are compared once.

    Args:
        place: The index.
        index: Its content.
        parts: The shard's sources; None: the recorded ones, which are whole files.
    """
    record = (index.packed or {}).get("sources")
    if record is None:
        return None
    changes = compare_sources(parts, record, place)
    if not changes.changed and changes.record != record:
        refreshed = replace(index, packed={**(index.packed or {}), "sources": changes.record})
        with atomic_write(place) as target:
            target.write(to_bytes(refreshed))
    return changes


def compare_folder(folder: str) -> tuple[dict[str, tuple[str, ...]], bool]:
    """Compare all shards of a folder with their recorded sources, which are whole files.

    Returns:
        The changed sources by shard, without those of shards whose changed sources had all been
        left out as broken; and whether there is such a shard, which is to be packed again.
    """
    changed, mended = {}, False
    for file in list_files(f"{folder}/*{_INDEX_SUFFIX}"):
        changes = compare_shard(file.path, from_bytes(read_file(file.path), file.path), None)
        if changes is None or not changes.changed:
            continue
        if changes.only_mended:
            mended = True
        else:
            name = file.path.rpartition("/")[2].removesuffix(_INDEX_SUFFIX)
            changed[name] = changes.changed
    return changed, mended


def changed_message(changed: Mapping[str, Sequence[str]], folder: str) -> str:
    """Describe sources that changed, by the shard that holds them."""
    shard, paths = next(iter(changed.items()))
    sources = counted(sum(map(len, changed.values())), "source")
    return (
        f"{sources} of {counted(len(changed), 'shard')} in {folder} changed after being packed, "
        f"such as {printable(paths[0])} of {shard}.tar"
    )
