"""Ranges of local files against a slow reader, and files that are written whole or not at all."""

import itertools
import multiprocessing
import os
import pickle
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest

from efficientsam_pl.errors import UserError
from efficientsam_pl.storage import ranges
from efficientsam_pl.storage.files import (
    StoredFile,
    atomic_write,
    consume_stream,
    exists,
    full_path,
    is_local,
    list_files,
    patterns,
    read_file,
)
from efficientsam_pl.storage.ranges import MAX_GAP_BYTES, Range, RangeReader, merge_ranges
from efficientsam_pl.storage.remote import ShortReadError

SIZE = 400_000


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    draw = np.random.default_rng(0)
    made = {str(tmp_path / f"{name}.bin"): draw.bytes(SIZE) for name in "abc"}
    for path, data in made.items():
        Path(path).write_bytes(data)
    return made


@pytest.fixture
def reader() -> RangeReader:
    return RangeReader()


def draw_ranges(paths: list[str], seed: int) -> list[Range]:
    """Ranges of random positions and sizes; they overlap, repeat, are empty, and reach the end."""
    draw = np.random.default_rng(seed)
    drawn = []
    for _ in range(int(draw.integers(0, 60))):
        offset = int(draw.integers(0, SIZE + 1))
        size = int(draw.integers(0, min(SIZE - offset, 10 ** draw.integers(1, 6)) + 1))
        drawn.append(Range(str(draw.choice(paths)), offset, size))
    return drawn


@pytest.mark.parametrize("seed", range(40))
def test_random_ranges_are_the_bytes_at_their_places(seed: int, files: dict[str, bytes]) -> None:
    ranges = draw_ranges([*files], seed)
    read = RangeReader().read(ranges)
    assert read == [files[r.path][r.offset : r.offset + r.size] for r in ranges]


@pytest.mark.parametrize("seed", range(20))
def test_merged_ranges_hold_the_requested_bytes_and_are_disjoint(seed: int) -> None:
    ranges = draw_ranges(["a", "b"], seed)
    wholes, part_of = merge_ranges(ranges)
    for wanted, i in zip(ranges, part_of, strict=True):
        whole = wholes[i]
        assert whole.path == wanted.path
        assert whole.offset <= wanted.offset
        assert wanted.offset + wanted.size <= whole.offset + whole.size
    for first, second in itertools.pairwise(wholes):
        assert first.path < second.path or first.offset + first.size + MAX_GAP_BYTES < second.offset
    assert sorted(set(part_of)) == list(range(len(wholes)))


def test_neighbours_become_one_read_and_far_ranges_do_not() -> None:
    near = [Range("a", 1000, 10), Range("a", 0, 100), Range("a", 1010 + MAX_GAP_BYTES, 5)]
    far = Range("a", 2000 + 2 * MAX_GAP_BYTES, 5)
    wholes, part_of = merge_ranges([*near, far])
    assert wholes == [Range("a", 0, 1015 + MAX_GAP_BYTES), far]
    assert part_of == [0, 0, 0, 1]


def test_file_that_ends_early_gives_what_it_has(files: dict[str, bytes]) -> None:
    path, data = next(iter(files.items()))
    ranges = [Range(path, SIZE - 20, 10), Range(path, SIZE - 10, 11), Range(path, SIZE + 5, 1)]
    whole, short, none = RangeReader().read(ranges)
    assert whole == data[-20:-10]
    assert isinstance(short, ShortReadError)
    assert str(short) == f"10 of 11 bytes at {SIZE - 10}"
    assert isinstance(none, ShortReadError)


def test_missing_file_harms_no_other(tmp_path: Path, files: dict[str, bytes]) -> None:
    path = next(iter(files))
    gone, folder, there = RangeReader().read(
        [Range(str(tmp_path / "gone"), 0, 5), Range(str(tmp_path), 0, 5), Range(path, 0, 5)]
    )
    assert isinstance(gone, FileNotFoundError)
    assert isinstance(folder, IsADirectoryError)
    assert there == files[path][:5]


@pytest.mark.parametrize("size", [1 << 50, 1 << 62])
def test_range_beyond_all_memory_is_an_error_of_its_own(size: int, files: dict[str, bytes]) -> None:
    [error] = RangeReader().read([Range(next(iter(files)), 0, size)])
    assert isinstance(error, OSError)


def test_more_files_than_may_be_open_are_all_read(tmp_path: Path, reader: RangeReader) -> None:
    paths = [tmp_path / str(i) for i in range(ranges._OPEN_FILES + 20)]
    for i, path in enumerate(paths):
        path.write_text(f"{i:3}")
    for _ in range(2):
        read = reader.read([Range(str(p), 0, 3) for p in paths])
        assert [int(bytes(data)) for data in read] == list(range(len(paths)))  # type: ignore[arg-type]
    assert len(reader._descriptors) == ranges._OPEN_FILES
    reader.close()
    assert not reader._descriptors


def test_deleted_files_give_their_space_back(files: dict[str, bytes], reader: RangeReader) -> None:
    a, b, c = files
    reader.read([Range(a, 0, 1), Range(b, 0, 1)])
    Path(a).unlink()
    [still] = reader.read([Range(a, 0, 1)])
    assert still == files[a][:1]  # it is open
    reader.read([Range(c, 0, 1)])  # the next file that is opened
    assert [*reader._descriptors] == [b, c]
    [gone] = reader.read([Range(a, 0, 1)])
    assert isinstance(gone, FileNotFoundError)


def test_descriptor_that_has_gone_stale_is_opened_again(
    files: dict[str, bytes], reader: RangeReader
) -> None:
    path = next(iter(files))
    reader.read([Range(path, 0, 1)])
    writing = os.open(path, os.O_WRONLY)  # cannot be read from
    os.dup2(writing, reader._descriptors[path])
    os.close(writing)
    first, second = (reader.read([Range(path, 0, 3)])[0] for _ in range(2))
    assert isinstance(first, OSError)
    assert second == files[path][:3]


def test_reader_goes_to_another_process_without_its_descriptors(
    files: dict[str, bytes], reader: RangeReader
) -> None:
    path = next(iter(files))
    reader.read([Range(path, 0, 1)])
    again = pickle.loads(pickle.dumps(reader))
    assert not again._descriptors
    assert again.read([Range(path, 3, 4)]) == [files[path][3:7]]


def test_forked_reader_opens_files_of_its_own(files: dict[str, bytes], reader: RangeReader) -> None:
    path = next(iter(files))
    reader.read([Range(path, 0, 1)])
    parents = dict(reader._descriptors)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def child() -> None:
        [data] = reader.read([Range(path, 7, 9)])
        queue.put((bytes(data), dict(reader._descriptors)))  # type: ignore[arg-type]

    process = context.Process(target=child)
    process.start()
    data, descriptors = queue.get()
    process.join()
    assert data == files[path][7:16]
    assert descriptors != parents
    assert reader.read([Range(path, 7, 9)]) == [data]


def test_files_are_listed_by_name_with_their_sizes(tmp_path: Path) -> None:
    for name, size in {"b.tar": 2, "a.tar": 1, "c.txt": 3}.items():
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "d.tar").mkdir()
    here = str(tmp_path)
    expected = [StoredFile(f"{here}/a.tar", 1), StoredFile(f"{here}/b.tar", 2)]
    assert list_files(f"{here}/*.tar") == expected
    assert list_files(f" {here}/b.tar , {here}/[ab].tar,") == expected
    assert list_files(f"{here}/d.tar,{here}/e.tar") == []


def test_paths_are_written_as_they_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert full_path("x/a.tar") == f"{tmp_path}/x/a.tar"
    assert full_path(f"file://{tmp_path}/a.tar") == f"{tmp_path}/a.tar"
    assert full_path("memory://x/a.tar") == "memory://x/a.tar"
    assert full_path("http://host/a.tar") == "http://host/a.tar"
    assert [is_local(p) for p in ("a.tar", "file:///a.tar", "memory://a.tar")] == [
        True,
        True,
        False,
    ]


def write_half(path: str) -> None:
    with atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError("no")


def test_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    with atomic_write(str(path)) as file:
        file.write(b"first")
        assert not path.exists()
    assert path.read_bytes() == b"first"
    with pytest.raises(RuntimeError, match="no"):
        write_half(str(path))
    assert path.read_bytes() == b"first"
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_two_writers_of_one_file_both_write_it_whole(tmp_path: Path) -> None:
    path = str(tmp_path / "a.bin")
    with atomic_write(path) as first, atomic_write(path) as second:
        first.write(b"1" * 10_000)
        second.write(b"2" * 10_000)
    assert read_file(path) in (b"1" * 10_000, b"2" * 10_000)
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_upload_appears_when_it_is_whole() -> None:
    path = "memory://up/a.bin"
    try:
        with pytest.raises(RuntimeError, match="no"):
            write_half(path)
        assert not exists(path)
        with atomic_write(path) as file:
            file.write(b"whole")
        assert read_file(path) == b"whole"
        assert consume_stream(path, lambda file: file.read()) == b"whole"
    finally:
        fsspec.filesystem("memory").rm("/up", recursive=True)


def test_readers_of_several_threads_do_not_mix(files: dict[str, bytes]) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        reader = RangeReader()
        for step in range(20):
            ranges = draw_ranges([*files], seed * 100 + step)
            if reader.read(ranges) != [files[r.path][r.offset : r.offset + r.size] for r in ranges]:
                wrong.append(seed)
        reader.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("a.tar, b/*.tar", ["a.tar", "b/*.tar"]),
        ("s-{08..10}.tar", ["s-08.tar", "s-09.tar", "s-10.tar"]),
        ("{x,y}/a.tar,z", ["x/a.tar", "y/a.tar", "z"]),
        ("s3://b/{0..1}-*.tar", ["s3://b/0-*.tar", "s3://b/1-*.tar"]),
        ("", []),
        (" , ", []),
    ],
)
def test_several_patterns_in_one(pattern: str, expected: list[str]) -> None:
    assert patterns(pattern) == expected


def test_braces_that_do_not_close_are_a_users_mistake() -> None:
    with pytest.raises(UserError, match="is no pattern"):
        patterns("s-{0..9.tar")
