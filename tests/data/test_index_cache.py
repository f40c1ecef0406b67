"""The compact form of an index: the samples of the JSON one, in a file that all processes map."""

import hashlib
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from efficientsam_pl.data import index_cache as module
from efficientsam_pl.data.compact_index import OutdatedIndexError, compact, from_file, to_file
from efficientsam_pl.data.index import IndexFormatError, ShardIndex, to_bytes
from efficientsam_pl.data.index_cache import FOLDER, SHARED_BYTES, IndexCache

KEYS = ("b", "a/é", "", "b1", "\udcff", "a", "日本")  # in no order, one of a name that is no UTF-8


def made_index(samples: int = 5000, seed: int = 0) -> ShardIndex:
    draw = np.random.default_rng(seed)
    places = draw.integers(0, 1 << 40, (samples, 2))
    absent = places.copy()
    absent[::3] = -1
    keys = tuple(f"sa_{number}" for number in draw.permutation(samples))
    return ShardIndex(1 << 41, f"{seed:064x}", keys, {"jpg": places, "json": absent})


@pytest.fixture
def index() -> ShardIndex:
    return made_index()


@pytest.fixture
def place(index: ShardIndex, tmp_path: Path) -> str:
    path = tmp_path / "s.tar.index.json"
    path.write_bytes(to_bytes(index))
    return str(path)


def shared(place: str) -> list[Path]:
    return sorted((Path(place).parent / FOLDER).glob("*"))


def test_compact_index_has_the_same_samples(index: ShardIndex) -> None:
    small = from_file(memoryview(to_file(compact(index), "x")), "name", "x")
    assert len(small) == len(index)
    for number in range(0, len(index), 97):
        assert small.sample("S", number) == index.sample("S", number)
        assert small.number(index.keys[number]) == number


def test_samples_are_found_by_any_key() -> None:
    places = {"txt": np.arange(2 * len(KEYS)).reshape(-1, 2)}
    small = compact(ShardIndex(100, "0", KEYS, places))
    assert [small.number(key) for key in KEYS] == list(range(len(KEYS)))
    assert [small.sample("S", number).key for number in range(len(KEYS))] == list(KEYS)
    assert [small.number(key) for key in ("c", "a/", "b2", "\U0010ffff")] == [None] * 4


def test_index_of_nothing_has_no_sample() -> None:
    small = from_file(memoryview(to_file(compact(ShardIndex(0, "0", (), {})), "x")), "name", "x")
    assert len(small) == 0
    assert small.number("a") is None


def test_a_sample_takes_about_fifty_bytes(index: ShardIndex) -> None:
    assert len(to_file(compact(index), "x")) < 52 * len(index)


def test_file_of_another_index_or_a_harmed_one_is_not_used(index: ShardIndex) -> None:
    whole = to_file(compact(index), "x")
    with pytest.raises(OutdatedIndexError):
        from_file(memoryview(whole), "name", "y")
    draw = np.random.default_rng(1)
    for place in [*draw.integers(0, len(whole), 200).tolist(), *range(0, 400, 7)]:
        harmed = bytearray(whole)
        harmed[place] ^= 1 << int(draw.integers(8))
        try:
            used = from_file(memoryview(harmed), "name", "x")
        except (OutdatedIndexError, IndexFormatError):
            continue
        assert used.sample("S", 7).files == index.sample("S", 7).files, place
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        with pytest.raises(OutdatedIndexError):
            from_file(memoryview(whole)[:length], "name", "x")


def test_file_of_another_version_is_one_line(place: str, index: ShardIndex) -> None:
    IndexCache(1).open(place)
    [path] = shared(place)
    path.write_bytes(path.read_bytes().replace(b'"version": 1', b'"version": 9'))
    with pytest.raises(IndexFormatError, match="is of version 9, this program reads 1") as caught:
        IndexCache(1).open(place)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("delete it to rebuild it")


def test_second_process_maps_the_file_of_the_first(
    place: str, index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    IndexCache(1).open(place)
    monkeypatch.setattr(module, "from_bytes", lambda *_: pytest.fail("the JSON was parsed"))
    mapped = IndexCache(1).open(place)
    assert mapped.sample("S", 11) == index.sample("S", 11)
    with pytest.raises(ValueError, match="read-only"):
        mapped.places["jpg"][0, 0] = 1


def test_rebuilt_index_is_read_again(place: str) -> None:
    IndexCache(1).open(place)
    other = made_index(seed=1)
    Path(place).write_bytes(to_bytes(other))
    assert IndexCache(1).open(place).sample("S", 5) == other.sample("S", 5)
    assert len(shared(place)) == 2  # a process that maps the first one keeps it


def test_harmed_file_is_written_again(place: str, index: ShardIndex) -> None:
    IndexCache(1).open(place)
    [path] = shared(place)
    whole = path.read_bytes()
    for harmed in (b"", whole[:-1], whole[:-1] + b"\xff"):
        path.write_bytes(harmed)
        assert IndexCache(1).open(place).sample("S", 3) == index.sample("S", 3)
        assert path.read_bytes() == whole


def test_small_index_gets_no_file(tmp_path: Path) -> None:
    place = tmp_path / "s.tar.index.json"
    few = made_index(SHARED_BYTES // 60)
    place.write_bytes(to_bytes(few))
    assert IndexCache(1).open(str(place)).sample("S", 1) == few.sample("S", 1)
    assert [path.name for path in tmp_path.iterdir()] == [place.name]


def test_folder_that_cannot_be_written_is_left_alone(
    place: str, index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert IndexCache(1).open(place).sample("S", 3) == index.sample("S", 3)
    assert shared(place) == []


def test_full_disk_is_no_fault(
    place: str, index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "hardlink_to", full)
    assert IndexCache(1).open(place).sample("S", 3) == index.sample("S", 3)
    assert shared(place) == []


def test_no_more_indexes_than_the_limit_are_open(tmp_path: Path) -> None:
    places = []
    for number in range(3):
        places.append(str(tmp_path / f"{number}.index.json"))
        Path(places[-1]).write_bytes(to_bytes(made_index(10, number)))
    cache = IndexCache(2)
    first, second = map(cache.open, places[:2])
    assert cache.open(places[0]) is first
    cache.open(places[2])  # the second was not used for longest
    assert cache.open(places[0]) is first
    assert cache.open(places[1]) is not second


def test_open_indexes_stay_in_their_process(place: str) -> None:
    cache = IndexCache(3)
    cache.open(place)
    assert len(pickle.dumps(cache)) < 200
    assert pickle.loads(pickle.dumps(cache)).open(place).number("sa_7") is not None


def _opened(place: str, barrier: object, queue: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    small = IndexCache(1).open(place)
    samples = repr([small.sample("S", number) for number in range(len(small))])
    queue.put(hashlib.sha256(samples.encode()).hexdigest())  # type: ignore[attr-defined]


def test_processes_that_open_an_index_at_once_read_the_same(place: str, index: ShardIndex) -> None:
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_opened, args=(place, barrier, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    results = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
    samples = repr([index.sample("S", number) for number in range(len(index))])
    assert results == {hashlib.sha256(samples.encode()).hexdigest()}
    assert [path.suffix for path in shared(place)] == [".index"]
