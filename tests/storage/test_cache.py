"""Remote shards kept locally: fetched once, whole or not at all, the oldest leave."""

import errno
import hashlib
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from efficientsam_pl.data.index import Sample
from efficientsam_pl.data.reader import ReadSample, SampleReader
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.storage import cache as module
from efficientsam_pl.storage.cache import CacheError, ShardCache
from efficientsam_pl.storage.filesystems import store
from efficientsam_pl.storage.ranges import RangeReader
from efficientsam_pl.storage.retries import SourceLostError

TarOf = Callable[[Path, dict[str, bytes]], Path]
Serve = Callable[..., Any]
SHARD_BYTES = 10240  # of a tar with little in it


@pytest.fixture
def folder(tmp_path: Path, tar_of: TarOf) -> Path:
    """Four shards of two samples."""
    made = tmp_path / "served"
    made.mkdir()
    for n in range(4):
        tar_of(made / f"s-{n}.tar", {f"{n}{k}.txt": b"%d%d" % (n, k) * 100 for k in range(2)})
    return made


def kept(folder: Path) -> int:
    return len(list(folder.glob("*.tar")))


def stray(folder: Path) -> list[str]:
    kept = (".tar", ".lock", ".tar.checked")
    return [p.name for p in folder.iterdir() if not p.name.endswith(kept)]


def fetches(web: Any, name: str) -> int:
    return sum(1 for file, _ in web.requests if file == name)


def test_local_shard_is_its_own(tmp_path: Path, folder: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 10**6)
    assert cache.local(f"{folder}/s-0.tar") == f"{folder}/s-0.tar"
    assert not cache.folder.exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_shard_is_fetched_whole_and_once(
    ranges: bool, tmp_path: Path, folder: Path, web: Serve
) -> None:
    served = web(folder, ranges)
    (folder / "big.tar").write_bytes(os.urandom(9 << 20))  # beyond one block of fsspec's
    cache = ShardCache(tmp_path / "cache", 10**8)
    for name in ("s-0.tar", "big.tar"):
        places = {cache.local(f"{served.url}/{name}") for _ in range(3)}
        assert [Path(p).read_bytes() for p in places] == [(folder / name).read_bytes()]
    assert fetches(served, "s-0.tar") == 1
    assert stray(cache.folder) == []


def test_shards_of_one_name_in_two_folders_are_two(
    tmp_path: Path, folder: Path, web: Serve
) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "s-0.tar").write_bytes(b"other")
    served, cache = web(folder), ShardCache(tmp_path / "cache", 10**8)
    sample = cache.local(f"{served.url}/s-0.tar")
    assert Path(cache.local(f"{served.url}/sub/s-0.tar")).read_bytes() == b"other"
    assert Path(sample).read_bytes() == (folder / "s-0.tar").read_bytes()


def test_least_recently_used_shard_leaves(tmp_path: Path, folder: Path, web: Serve) -> None:
    served, cache = web(folder), ShardCache(tmp_path / "cache", 2 * SHARD_BYTES)
    urls = [f"{served.url}/s-{n}.tar" for n in range(4)]
    first, second = cache.local(urls[0]), cache.local(urls[1])
    time.sleep(0.01)
    cache.local(urls[0])  # used again: now the second is the oldest
    time.sleep(0.01)
    third = cache.local(urls[2])
    assert [Path(p).exists() for p in (first, second, third)] == [True, False, True]
    assert kept(cache.folder) == 2
    cache.local(urls[1])
    assert fetches(served, "s-1.tar") == 2


def test_shard_larger_than_the_limit_is_kept_alone(
    tmp_path: Path, folder: Path, web: Serve
) -> None:
    served, cache = web(folder), ShardCache(tmp_path / "cache", 1)
    for n in range(3):
        place = Path(cache.local(f"{served.url}/s-{n}.tar"))
        assert place.read_bytes() == (folder / f"s-{n}.tar").read_bytes()
        assert kept(cache.folder) == 1


def test_missing_shard_is_no_lost_source(tmp_path: Path, folder: Path, web: Serve) -> None:
    served, cache = web(folder), ShardCache(tmp_path / "cache", 10**6)
    with pytest.raises(FileNotFoundError):
        cache.local(f"{served.url}/none.tar")
    assert kept(cache.folder) == 0
    assert stray(cache.folder) == []


def test_download_that_breaks_off_is_tried_again(tmp_path: Path, folder: Path, web: Serve) -> None:
    served, cache = web(folder), ShardCache(tmp_path / "cache", 10**6)
    served.cutting = 2
    place = Path(cache.local(f"{served.url}/s-0.tar"))
    assert place.read_bytes() == (folder / "s-0.tar").read_bytes()
    assert fetches(served, "s-0.tar") == 3


def test_source_that_fails_for_ever_leaves_no_half_file(
    tmp_path: Path, folder: Path, web: Serve
) -> None:
    served, cache = web(folder), ShardCache(tmp_path / "cache", 10**6)
    served.cutting = 10**6
    with pytest.raises(SourceLostError, match=r"s-0\.tar does not respond after 5 tries"):
        cache.local(f"{served.url}/s-0.tar")
    assert kept(cache.folder) == 0
    assert stray(cache.folder) == []


def test_store_that_ends_early_without_a_word_is_noticed(
    tmp_path: Path, folder: Path, web: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, cache = web(folder), ShardCache(tmp_path / "cache", 10**6)
    url = f"{served.url}/s-0.tar"
    fs, plain = store(url)
    info = fs.info(plain)
    monkeypatch.setattr(fs, "info", lambda path: info | {"size": info["size"] + 512})
    with pytest.raises(SourceLostError, match="10240 of 10752 bytes arrived"):
        cache.local(url)
    assert kept(cache.folder) == 0


def test_vanished_server_is_reported_in_time(tmp_path: Path, folder: Path, web: Serve) -> None:
    served, cache = web(folder), ShardCache(tmp_path / "cache", 10**6)
    served.stop()
    begin = time.monotonic()
    with pytest.raises(SourceLostError, match=served.url):
        cache.local(f"{served.url}/s-0.tar")
    assert time.monotonic() - begin < 10


def test_full_disk_is_one_line_and_no_lost_source(
    tmp_path: Path, folder: Path, web: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Any, target: Any) -> None:
        target.write(source.read(100))
        raise OSError(errno.ENOSPC, "No space left on device")

    served, kept_in = web(folder), tmp_path / "cache"
    monkeypatch.setattr(module, "copy_from_start", full)
    with pytest.raises(CacheError, match=rf"^{kept_in} cannot keep {served.url}.*No space left"):
        ShardCache(kept_in, 10**6).local(f"{served.url}/s-0.tar")
    assert fetches(served, "s-0.tar") == 1
    assert kept(kept_in) == 0
    assert stray(kept_in) == []


def test_folder_that_cannot_be_made_is_one_line(tmp_path: Path, folder: Path, web: Serve) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheError, match="cannot keep"):
        ShardCache(tmp_path / "file" / "cache", 10**6).local(f"{web(folder).url}/s-0.tar")


def test_half_file_of_a_process_that_died_is_removed(
    tmp_path: Path, folder: Path, web: Serve
) -> None:
    served, cache = web(folder), ShardCache(tmp_path / "cache", 10**6)
    place = Path(cache.local(f"{served.url}/s-0.tar"))
    place.rename(place.with_name(f".{place.name}.0123456789ab.part"))
    cache.local(f"{served.url}/s-0.tar")
    assert stray(cache.folder) == []


def _fetch_all(folder: Path, urls: list[str], barrier: Any, queue: Any) -> None:
    barrier.wait()
    cache = ShardCache(folder, 10**8)
    queue.put([Path(cache.local(url)).read_bytes() for url in urls])


def test_processes_that_share_the_folder_fetch_each_shard_once(
    tmp_path: Path, folder: Path, web: Serve
) -> None:
    served = web(folder)
    urls = [f"{served.url}/s-{n}.tar" for n in range(4)]
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(3), context.Queue()
    processes = [
        context.Process(target=_fetch_all, args=(tmp_path / "cache", urls, barrier, queue))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    contents = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert contents == 3 * [[(folder / f"s-{n}.tar").read_bytes() for n in range(4)]]
    assert [fetches(served, f"s-{n}.tar") for n in range(4)] == [1, 1, 1, 1]
    assert stray(tmp_path / "cache") == []


def texts(read: list[ReadSample | None]) -> list[bytes]:
    return [b"" if sample is None else bytes(sample.files.get("txt", b"?")) for sample in read]


@pytest.mark.parametrize("shards_kept", [0, 1, 100])
def test_samples_are_read_through_a_cache_of_any_size(
    shards_kept: int, tmp_path: Path, folder: Path, web: Serve
) -> None:
    shards = open_shards(f"{web(folder).url}/s-*.tar")
    cache = ShardCache(tmp_path / "cache", shards_kept * SHARD_BYTES + 1)
    reader = SampleReader([shards], ["txt"], cache)
    order = [7, 0, 5, 2, 2, 6, 1, 4, 3]
    for _ in range(2):
        read = reader.read([SampleRef(0, number) for number in order])
        assert [sample.corrupt for sample in read if sample is not None] == [None] * len(order)
        assert texts(read) == [b"%d%d" % divmod(number, 2) * 100 for number in order]


def test_shard_that_leaves_the_cache_just_before_it_is_read_is_read_at_its_source(
    tmp_path: Path, folder: Path, web: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = open_shards(f"{web(folder).url}/s-*.tar")
    cache = ShardCache(tmp_path / "cache", 10**6)
    read_ranges = RangeReader.read

    def after_another_process_made_room(self: RangeReader, ranges: Any) -> Any:
        for path in cache.folder.glob("*.tar"):
            path.unlink()
        return read_ranges(self, ranges)

    monkeypatch.setattr(RangeReader, "read", after_another_process_made_room)
    reader = SampleReader([shards], ["txt"], cache)
    [sample] = reader.read([SampleRef(0, 3)])
    assert sample is not None
    assert (sample.corrupt, bytes(sample.files["txt"])) == (None, b"11" * 100)


def test_shard_missing_at_its_source_is_reported_for_its_samples(
    tmp_path: Path, folder: Path, web: Serve
) -> None:
    served = web(folder)
    shards = open_shards(f"{served.url}/s-*.tar")
    (folder / "s-1.tar").unlink()
    cache = ShardCache(tmp_path / "cache", 10**6)
    read = SampleReader([shards], ["txt"], cache).read([SampleRef(0, n) for n in range(4)])
    assert [r and r.corrupt and r.corrupt.kind for r in read] == [
        None,
        None,
        *["missing shard"] * 2,
    ]
    sample: Sample = shards.sample(2)
    assert read[2] is not None
    assert read[2].corrupt is not None
    assert (read[2].corrupt.shard, read[2].corrupt.key) == (sample.shard, sample.key)


def test_shard_that_was_replaced_is_fetched_anew(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    cache = ShardCache(tmp_path / "cache", 1 << 20)
    memory.pipe("/replaced/a.tar", b"old bytes")
    assert Path(cache.local("memory://replaced/a.tar", "one")).read_bytes() == b"old bytes"
    memory.pipe("/replaced/a.tar", b"new bytes")
    assert Path(cache.local("memory://replaced/a.tar", "one")).read_bytes() == b"old bytes"
    assert Path(cache.local("memory://replaced/a.tar", "two")).read_bytes() == b"new bytes"
    memory.rm("/replaced", recursive=True)


def kept_in_an_earlier_run(web: Any, folder: Path, served: Path) -> tuple[str, str, Path]:
    """The URL and checksum of a shard that a cache of a run an hour ago has kept, and its copy."""
    url = f"{web.url}/s-0.tar"
    sha256 = hashlib.sha256((served / "s-0.tar").read_bytes()).hexdigest()
    kept = Path(ShardCache(folder, 10**6).local(url, sha256))
    hour_ago = time.time() - 3600
    os.utime(f"{kept}.checked", (hour_ago, hour_ago))
    return url, sha256, kept


@pytest.mark.parametrize("damage", ["a byte", "cut", "longer", "empty"])
def test_corrupt_copy_is_fetched_again_and_named(
    damage: str, tmp_path: Path, folder: Path, web: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    served = web(folder)
    url, sha256, copy = kept_in_an_earlier_run(served, tmp_path / "cache", folder)
    whole = copy.read_bytes()
    other = bytes([whole[600] ^ 1])
    damaged = {
        "a byte": whole[:600] + other + whole[601:],
        "cut": whole[:1000],
        "longer": whole + b"x",
        "empty": b"",
    }
    copy.write_bytes(damaged[damage])
    cache = ShardCache(tmp_path / "cache", 10**6)
    assert [Path(cache.local(url, sha256)).read_bytes() for _ in range(3)] == [whole] * 3
    assert fetches(served, "s-0.tar") == 2
    [line] = caplog.messages
    assert line == f"{copy}, the copy of {url}, is corrupt and fetched again"


def test_good_copy_is_compared_once_a_run_and_not_fetched(
    tmp_path: Path, folder: Path, web: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = web(folder)
    url, sha256, copy = kept_in_an_earlier_run(served, tmp_path / "cache", folder)
    compared: list[str] = []
    is_whole = module._is_whole
    monkeypatch.setattr(
        module, "_is_whole", lambda *args: (compared.append(args[0]), is_whole(*args))[1]
    )
    begun = time.time() - 60
    for cache in [ShardCache(tmp_path / "cache", 10**6, begun) for _ in range(2)]:  # two ranks
        assert {cache.local(url, sha256) for _ in range(3)} == {str(copy)}
    assert compared == [url]
    assert fetches(served, "s-0.tar") == 1


def test_store_with_other_bytes_than_indexed_is_named_and_fetched_once_a_run(
    tmp_path: Path, folder: Path, web: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    served = web(folder)
    cache = ShardCache(tmp_path / "cache", 10**6)
    for _ in range(2):
        cache.local(f"{served.url}/s-0.tar", "0" * 64)
    assert caplog.messages == [
        f"{served.url}/s-0.tar has other bytes in its store than when it was indexed"
    ]
    assert fetches(served, "s-0.tar") == 1
