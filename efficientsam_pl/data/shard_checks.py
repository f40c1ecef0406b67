"""Whether shards are what they should be: tar, index, checksum, photos, masks, stored features."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from efficientsam_pl.data.datasets.train import check_size, photo_of, record_of
from efficientsam_pl.data.decode import decode_photo
from efficientsam_pl.data.features.codec import read_map
from efficientsam_pl.data.index import IndexFormatError, ShardIndex, from_bytes, index_of
from efficientsam_pl.data.schema import (
    CLASS_ENDING,
    PHOTO_ENDINGS,
    RECORD_ENDING,
    DamagedSampleError,
    holds_features,
)
from efficientsam_pl.data.shards import Shard, ShardSet
from efficientsam_pl.data.worker_pool import worker_pool
from efficientsam_pl.rle import run_lengths
from efficientsam_pl.storage.files import from_beginning, read_file
from efficientsam_pl.storage.ranges import RangeReader
from efficientsam_pl.storage.tar import scan_tar
from efficientsam_pl.structures import Damage


@dataclass(frozen=True)
class CheckedShard:
    """A shard, the samples that were looked at, and everything wrong with it."""

    shard: str
    samples: int
    bad: tuple[Damage, ...]


def check_shards(shards: ShardSet, workers: int) -> Iterator[CheckedShard]:
    """Checks every shard of a set, several at a time; 0 workers: none beside this process.

    Raises:
        UserError: A worker was killed, or a store does not answer.
    """
    lost = {d.shard: d for d in shards.damage if d.kind == "missing shard"}
    for path, damage in lost.items():
        yield CheckedShard(path, 0, (damage,))
    there = [shard for shard in shards.shards if shard.path not in lost]
    if workers == 0:
        yield from map(check_shard, there)
        return
    with worker_pool(workers) as pool:
        yield from pool.map(check_shard, there)


def check_shard(shard: Shard) -> CheckedShard:
    """Reads all of a shard: once for the tar and its checksum, once for what is in it."""
    try:
        scan = from_beginning(shard.path, scan_tar)
    except OSError as error:
        return CheckedShard(shard.path, 0, (Damage(shard.path, "", "cannot be read", str(error)),))
    now = index_of(scan)
    bad = [Damage(shard.path, "", "broken tar", what) for what in scan.damage]
    if scan.sha256 != shard.sha256:
        what = f"sha256 {scan.sha256[:16]}…, when it was indexed {shard.sha256[:16]}…"
        bad.append(Damage(shard.path, "", "checksum", what))
    if not len(now):
        bad.append(Damage(shard.path, "", "empty shard", "it holds no sample"))
    names = Counter(member.name for member in scan.members)
    bad += [
        Damage(shard.path, "", "file twice", f"{count} files are named {name}")
        for name, count in names.items()
        if count > 1
    ]
    try:
        expected = _endings(shard)
    except (OSError, IndexFormatError) as error:
        expected = {}
        bad.append(Damage(shard.path, "", "bad index", str(error)))
    there = set(now.keys)
    bad += [
        Damage(shard.path, key, "lost sample", "the index lists it, the tar has it no more")
        for key in expected
        if key not in there
    ]
    return CheckedShard(shard.path, len(now), (*bad, *_damaged_samples(shard.path, now, expected)))


def _endings(shard: Shard) -> dict[str, set[str]]:
    """The endings of each sample's files, as the index has them.

    Raises:
        IndexFormatError: The index is damaged, or of another state of the shard.
    """
    index = from_bytes(read_file(shard.index), shard.index)
    if index.sha256 != shard.sha256:
        raise IndexFormatError(f"{shard.index} is not the one that the manifest names")
    return {
        key: {ending for ending, places in index.places.items() if places[number, 0] >= 0}
        for number, key in enumerate(index.keys)
    }


def _damaged_samples(
    path: str, index: ShardIndex, expected: dict[str, set[str]]
) -> Iterator[Damage]:
    reader = RangeReader()
    masked = {RECORD_ENDING} if RECORD_ENDING in index.places else set()
    for number, key in enumerate(index.keys):
        sample = index.sample(path, number)
        needed = masked | expected.get(key, set())
        read = dict(zip(sample.files, reader.read(list(sample.files.values())), strict=True))
        cut = next((data for data in read.values() if isinstance(data, OSError)), None)
        if cut is not None:
            yield Damage(path, key, "truncated shard", str(cut))
            continue
        files = {ending: data for ending, data in read.items() if isinstance(data, memoryview)}
        try:
            _check_files(files, needed)
        except DamagedSampleError as error:
            yield Damage(path, key, error.kind, error.detail)
    reader.close()


def _check_files(files: dict[str, memoryview], needed: set[str]) -> None:
    """Raises DamagedSampleError for what a stream could not use either, and for lost files."""
    features = {ending: data for ending, data in files.items() if holds_features(ending)}
    of_photo = {*PHOTO_ENDINGS, RECORD_ENDING, CLASS_ENDING} & files.keys()
    if not of_photo and not features:
        raise DamagedSampleError("unknown files", ", ".join(sorted(files)))
    if of_photo:
        _check_photo(files, RECORD_ENDING in needed)
    for ending, data in sorted(features.items()):
        read_map(data, ending)
    lost = needed - files.keys()
    if lost:
        raise DamagedSampleError(f"missing {min(lost)}", f"only {', '.join(sorted(files))}")
    if CLASS_ENDING in files and not bytes(files[CLASS_ENDING]).strip().isdigit():
        raise DamagedSampleError("bad class", repr(bytes(files[CLASS_ENDING])[:20]))


def _check_photo(files: dict[str, memoryview], with_record: bool) -> None:
    image = decode_photo(photo_of(files))
    if not with_record:
        return
    record = record_of(files)
    check_size(record, (image.shape[0], image.shape[1]))
    try:
        run_lengths([annotation.rle for annotation in record.annotations])
    except ValueError as error:
        raise DamagedSampleError("bad mask", str(error)) from error
