"""Check shards: tar, index, checksum, images, masks and stored features."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from efficientsam_pl.data.images.decode import decode_image, image_size_of
from efficientsam_pl.data.images.label_map import check_same_size, decode_label_map
from efficientsam_pl.data.index import IndexFormatError, ShardIndex, from_bytes, index_of
from efficientsam_pl.data.manifest import Shard
from efficientsam_pl.data.sample_files import decode_annotated, encoded_image
from efficientsam_pl.data.schema import (
    CLASS_SUFFIX,
    IMAGE_SUFFIXES,
    LABEL_SUFFIX,
    RECORD_SUFFIX,
    CorruptSampleError,
    holds_features,
)
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.data.worker_pool import worker_pool
from efficientsam_pl.records import CorruptSample
from efficientsam_pl.rle import run_lengths
from efficientsam_pl.storage.files import consume_stream, read_file
from efficientsam_pl.storage.ranges import RangeReader
from efficientsam_pl.storage.tar import scan_tar

_OF_IMAGE = {*IMAGE_SUFFIXES, RECORD_SUFFIX, CLASS_SUFFIX, LABEL_SUFFIX}


@dataclass(frozen=True)
class CheckedShard:
    """A shard, the number of samples checked, and its faults."""

    shard: str
    samples: int
    bad: tuple[CorruptSample, ...]


def check_shards(shards: ShardSet, workers: int) -> Iterator[CheckedShard]:
    """Check every shard of a set in parallel; 0 workers: in this process.

    Raises:
        UserError: A worker was killed, or a store does not respond.
    """
    lost = {d.shard: d for d in shards.corrupt if d.kind == "missing shard"}
    for path, corrupt in lost.items():
        yield CheckedShard(path, 0, (corrupt,))
    existing = [shard for shard in shards.shards if shard.path not in lost]
    if workers == 0:
        yield from map(check_shard, existing)
        return
    with worker_pool(workers) as pool:
        yield from pool.map(check_shard, existing)


def check_shard(shard: Shard) -> CheckedShard:
    """Read a whole shard twice: for the tar and its checksum, then for its samples."""
    try:
        scan = consume_stream(shard.path, scan_tar)
    except OSError as error:
        return CheckedShard(
            shard.path, 0, (CorruptSample(shard.path, "", "cannot be read", str(error)),)
        )
    now = index_of(scan)
    bad = [CorruptSample(shard.path, "", "broken tar", what) for what in scan.faults]
    if scan.sha256 != shard.sha256:
        what = f"sha256 {scan.sha256[:16]}…, when it was indexed {shard.sha256[:16]}…"
        bad.append(CorruptSample(shard.path, "", "checksum", what))
    if not len(now):
        bad.append(CorruptSample(shard.path, "", "empty shard", "it holds no sample"))
    names = Counter(member.name for member in scan.members)
    bad += [
        CorruptSample(shard.path, "", "file twice", f"{count} files are named {name}")
        for name, count in names.items()
        if count > 1
    ]
    try:
        expected = _suffixes(shard)
    except (OSError, IndexFormatError) as error:
        expected = {}
        bad.append(CorruptSample(shard.path, "", "bad index", str(error)))
    there = set(now.keys)
    bad += [
        CorruptSample(shard.path, key, "lost sample", "the index lists it, the tar lacks it")
        for key in expected
        if key not in there
    ]
    return CheckedShard(shard.path, len(now), (*bad, *_corrupt_samples(shard.path, now, expected)))


def _suffixes(shard: Shard) -> dict[str, set[str]]:
    """Return the suffixes of each sample's files, as the index lists them.

    Raises:
        IndexFormatError: The index is corrupt, or of another state of the shard.
    """
    index = from_bytes(read_file(shard.index), shard.index)
    if index.sha256 != shard.sha256:
        raise IndexFormatError(f"{shard.index} is not the one that the manifest names")
    return {
        key: {suffix for suffix, places in index.places.items() if places[number, 0] >= 0}
        for number, key in enumerate(index.keys)
    }


def _corrupt_samples(
    path: str, index: ShardIndex, expected: dict[str, set[str]]
) -> Iterator[CorruptSample]:
    reader = RangeReader()
    masked = {RECORD_SUFFIX, LABEL_SUFFIX} & index.places.keys()
    for number, key in enumerate(index.keys):
        sample = index.sample(path, number)
        needed = masked | expected.get(key, set())
        read = dict(zip(sample.files, reader.read(list(sample.files.values())), strict=True))
        cut = next((data for data in read.values() if isinstance(data, OSError)), None)
        if cut is not None:
            yield CorruptSample(path, key, "truncated shard", str(cut))
            continue
        files = {suffix: data for suffix, data in read.items() if isinstance(data, memoryview)}
        try:
            _check_files(files, needed)
        except CorruptSampleError as error:
            yield CorruptSample(path, key, error.kind, error.detail)
    reader.close()


def _check_files(files: dict[str, memoryview], needed: set[str]) -> None:
    """Raise CorruptSampleError for files that training could not use, and for lost files."""
    features = {suffix: data for suffix, data in files.items() if holds_features(suffix)}
    of_image = _OF_IMAGE & files.keys()
    if not of_image and not features:
        raise CorruptSampleError("unknown files", ", ".join(sorted(files)))
    if of_image:
        _check_image(files, RECORD_SUFFIX in needed)
    if features:
        _check_features(features)
    lost = needed - files.keys()
    if lost:
        raise CorruptSampleError(f"missing {min(lost)}", f"only {', '.join(sorted(files))}")
    if CLASS_SUFFIX in files and not bytes(files[CLASS_SUFFIX]).strip().isdigit():
        raise CorruptSampleError("bad class", repr(bytes(files[CLASS_SUFFIX])[:20]))
    if LABEL_SUFFIX in files:
        map_hw = decode_label_map(files[LABEL_SUFFIX]).shape
        check_same_size(map_hw, image_size_of(encoded_image(files)))


def _check_features(features: dict[str, memoryview]) -> None:
    from efficientsam_pl.data.features.codec import read_map  # shards of images need no torch

    for suffix, data in sorted(features.items()):
        read_map(data, suffix)


def _check_image(files: dict[str, memoryview], with_record: bool) -> None:
    if not with_record:
        decode_image(encoded_image(files))
        return
    _, record = decode_annotated(files)
    try:
        run_lengths([annotation.rle for annotation in record.annotations])
    except ValueError as error:
        raise CorruptSampleError("bad mask", str(error)) from error
