import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest

from efficientsam_pl.data.index import IndexFormatError
from efficientsam_pl.data.packing.runner import ArrayShare, run_packing
from efficientsam_pl.data.packing.writer import PackedSample, PackSummary, Skipped, write_shard
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.data.worker_pool import worker_pool
from efficientsam_pl.errors import SavedAndStopped, UserError


@dataclass(frozen=True)
class Numbers:
    """A shard of three numbers, of which every tenth is skipped."""

    number: int
    weight: int = 3

    @property
    def name(self) -> str:
        return f"numbers-{self.number:03d}"

    def samples(self) -> Iterator[PackedSample | Skipped]:
        for n in range(3 * self.number, 3 * self.number + 3):
            if n % 10 == 9:
                yield Skipped(f"n{n}", "it ends in nine")
            else:
                yield PackedSample(f"n{n}", {"txt": str(n).encode() * n}, masks=n)


@dataclass(frozen=True)
class Fatal(Numbers):
    def samples(self) -> Iterator[PackedSample | Skipped]:
        if self.number == 2:
            os._exit(9)
        yield from super().samples()


@dataclass(frozen=True)
class Endless(Numbers):
    def samples(self) -> Iterator[PackedSample | Skipped]:
        if self.number == 2:
            Path(os.environ["BEGUN"]).touch()
            time.sleep(600)
        yield from super().samples()


@dataclass(frozen=True)
class AllNumbers:
    """Several shards of numbers."""

    shards: int = 7
    version: int = 1
    unit: type[Numbers] = Numbers

    def described(self) -> dict[str, Any]:
        return {"kind": "numbers", "version": self.version}

    def weight(self, share: ArrayShare) -> int:
        return sum(unit.weight for unit in self.units(share))

    def units(self, share: ArrayShare) -> Iterator[Numbers]:
        return (self.unit(i) for i in range(self.shards)[share.index :: share.count])


def packed(
    out: Path | str, source: AllNumbers | None = None, share: ArrayShare | None = None
) -> PackSummary:
    advanced: list[int] = []
    source, share = source or AllNumbers(), share or ArrayShare()
    summary = run_packing(source, str(out), share, 0, advanced.append)
    assert sum(advanced) == source.weight(share)
    return summary


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest without the times at which the shards were written."""
    loaded: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    for shard in loaded["shards"].values():
        assert [time.partition(":")[0] for time in shard.pop("times")] == ["mtime"]
    return loaded


def keys(folder: Path) -> list[str]:
    return [sample.key for sample in open_shards(f"{folder}/*.tar").samples()]


NUMBERS = [f"n{n}" for n in range(21) if n % 10 != 9]


def test_summary_counts_what_was_written(tmp_path: Path) -> None:
    summary = packed(tmp_path)
    assert keys(tmp_path) == NUMBERS
    assert summary.samples == len(NUMBERS) == 19
    assert summary.masks == sum(range(21)) - 9 - 19
    assert summary.bytes == sum(map(len, tars(tmp_path).values()))
    assert summary.skipped == [Skipped(f"n{n}", "it ends in nine") for n in (9, 19)]
    assert (len(summary.shards), summary.done_before) == (7, 0)


@pytest.mark.parametrize("missing", [(0,), (6,), (1, 2, 5), range(7)], ids=str)
def test_resumed_packing_writes_what_is_missing_and_reports_the_same(
    missing: tuple[int, ...], tmp_path: Path
) -> None:
    first = packed(tmp_path)
    whole = tars(tmp_path)
    manifest = manifest_of(tmp_path)
    (tmp_path / "manifest.json").unlink()
    for number in missing:
        (tmp_path / f"numbers-{number:03d}.tar").unlink()
    there = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    again = packed(tmp_path)
    assert tars(tmp_path) == whole
    assert manifest_of(tmp_path) == manifest
    assert {path: path.stat().st_mtime_ns for path in there} == there
    assert again.done_before == 7 - len(missing)
    for field in ("samples", "masks", "bytes", "shards", "skipped"):
        assert getattr(again, field) == getattr(first, field)


def test_batch_script_is_informed_of_shards_that_are_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of those that an earlier start has made: a job that makes none gets nowhere."""
    state = tmp_path / "state"
    monkeypatch.setenv("EFFICIENTSAM_JOB_STATE", str(state))
    packed(tmp_path / "out")
    assert (state / "progress").read_text() == "7\n"
    (state / "progress").unlink()
    packed(tmp_path / "out")
    assert not (state / "progress").exists()
    (tmp_path / "out/numbers-004.tar").unlink()
    packed(tmp_path / "out")
    assert (state / "progress").read_text() == "5\n"


def test_tar_whose_index_was_not_written_yet_is_written_again(tmp_path: Path) -> None:
    packed(tmp_path)
    whole = tars(tmp_path)
    (tmp_path / "numbers-002.tar").write_bytes(b"of an older, longer run " * 1000)
    (tmp_path / "numbers-002.tar.index.json").unlink()
    (tmp_path / "manifest.json").unlink()
    assert packed(tmp_path).done_before == 6
    assert tars(tmp_path) == whole


def test_index_that_a_reader_made_is_no_sign_of_a_packed_shard(tmp_path: Path) -> None:
    packed(tmp_path)
    for path in [*tmp_path.glob("*.index.json"), tmp_path / "manifest.json"]:
        path.unlink()
    open_shards(f"{tmp_path}/*.tar")
    again = packed(tmp_path)
    assert (again.done_before, len(again.skipped)) == (0, 2)


def test_half_shards_of_a_killed_job_are_deleted(tmp_path: Path) -> None:
    halves: list[Path] = []

    def until_it_is_killed() -> Iterator[PackedSample]:
        for n in range(2):
            halves[:] = tmp_path.glob(".*.part")
            yield PackedSample(f"n{n}", {"txt": b""})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(f"{tmp_path}/numbers-001.tar", until_it_is_killed())
    [half] = halves
    others = half.with_name(half.name.replace("001", "900")), tmp_path / ".notes.part"
    for path in (half, *others):
        path.write_bytes(b"half")  # as kill -9 leaves it
    assert list(tmp_path.glob("*.tar")) == []
    packed(tmp_path)
    assert keys(tmp_path) == NUMBERS
    assert not half.exists()
    assert all(path.exists() for path in others)  # of another share, of something else


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
def test_all_shares_together_are_the_whole(count: int, tmp_path: Path) -> None:
    packed(tmp_path / "one")
    summaries = [packed(tmp_path / "many", share=ArrayShare(i, count)) for i in range(count)]
    assert tars(tmp_path / "many") == tars(tmp_path / "one")
    assert sum(summary.samples for summary in summaries) == 19
    assert sum(len(summary.skipped) for summary in summaries) == 2
    manifests = [manifest_of(tmp_path / n) for n in ("one", "many")]
    assert manifests[0] == manifests[1]
    assert packed(tmp_path / "many").done_before == 7  # however it was split


@pytest.mark.parametrize(("index", "count"), [(1, 1), (-1, 2), (0, 0)])
def test_share_out_of_range_is_an_error_with_both_numbers(index: int, count: int) -> None:
    with pytest.raises(UserError, match=f"--array-index {index} .*--array-count {count}"):
        ArrayShare(index, count)


def test_shard_of_nothing_but_skipped_samples_is_reported_each_time(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Bad(Numbers):
        def samples(self) -> Iterator[PackedSample | Skipped]:
            yield Skipped(self.name, "bad")

    for _ in range(2):
        summary = packed(tmp_path, AllNumbers(2, unit=Bad))
        assert (summary.samples, summary.shards) == (0, [])
        assert [skipped.what for skipped in summary.skipped] == ["numbers-000", "numbers-001"]
    assert tars(tmp_path) == {}


def test_folder_of_another_packing_is_refused_with_both_values(tmp_path: Path) -> None:
    packed(tmp_path)
    whole = tars(tmp_path)
    with pytest.raises(UserError, match="version was 1, now 2") as caught:
        packed(tmp_path, AllNumbers(version=2))
    assert str(tmp_path) in str(caught.value)
    assert tars(tmp_path) == whole


def test_folder_with_foreign_tars_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sa_000001.tar").write_bytes(b"years of work")
    with pytest.raises(UserError, match=r"without a pack\.json"):
        packed(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sa_000001.tar"]


@pytest.mark.parametrize("note", ["", "[]", "{", '{"format": "x"}'])
def test_corrupt_note_is_an_error_that_names_it(note: str, tmp_path: Path) -> None:
    (tmp_path / "pack.json").write_text(note)
    with pytest.raises(UserError, match=r"pack\.json"):
        packed(tmp_path)


@pytest.mark.parametrize("source", [None, [], 3])
def test_note_without_its_source_is_an_error_that_names_it(source: Any, tmp_path: Path) -> None:
    packed(tmp_path)
    noted = json.loads((tmp_path / "pack.json").read_text())
    (tmp_path / "pack.json").write_text(json.dumps(noted | {"source": source}))
    with pytest.raises(UserError):
        packed(tmp_path)


def test_note_of_a_later_version_is_refused(tmp_path: Path) -> None:
    packed(tmp_path)
    noted = json.loads((tmp_path / "pack.json").read_text())
    (tmp_path / "pack.json").write_text(json.dumps(noted | {"version": 2}))
    with pytest.raises(IndexFormatError, match="version 2, this program reads 1"):
        packed(tmp_path)


def test_relative_folder_with_spaces_and_dots_has_a_manifest_that_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        packed("my shards/v1.2")
    monkeypatch.chdir("/")
    assert keys(tmp_path / "my shards/v1.2") == NUMBERS
    listed = json.loads((tmp_path / "my shards/v1.2/manifest.json").read_text())["shards"]
    assert listed["numbers-000.tar"]["index"] == "numbers-000.tar.index.json"


def test_remote_folder_is_written_and_resumed() -> None:
    store = fsspec.filesystem("memory")
    first = packed("memory://packed/set")
    store.rm("/packed/set/numbers-001.tar")
    again = packed("memory://packed/set")
    assert (first.done_before, again.done_before, again.samples) == (0, 6, 19)
    shards = open_shards("memory://packed/set/*.tar")
    assert [sample.key for sample in shards.samples()] == NUMBERS
    store.rm("/packed", recursive=True)


def test_workers_write_the_same_shards(tmp_path: Path) -> None:
    packed(tmp_path / "none")
    summary = run_packing(AllNumbers(), f"{tmp_path}/two", ArrayShare(), 2, lambda weight: None)
    assert tars(tmp_path / "two") == tars(tmp_path / "none")
    assert (summary.samples, len(summary.skipped)) == (19, 2)
    assert sorted(shard.path for shard in summary.shards) == sorted(
        str(path) for path in (tmp_path / "two").glob("*.tar")
    )


def test_worker_that_is_killed_is_reported_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a worker process was killed"):
        run_packing(AllNumbers(unit=Fatal), str(tmp_path), ArrayShare(), 1, lambda weight: None)
    assert set(tars(tmp_path)) == {"numbers-000.tar", "numbers-001.tar"}
    assert packed(tmp_path).done_before == 2
    assert keys(tmp_path) == NUMBERS


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_amid_a_shard_keeps_the_others_and_says_so(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, out = tmp_path / "begun", tmp_path / "out"
    monkeypatch.setenv("BEGUN", str(begun))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        while not begun.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(SavedAndStopped, match=r"^interrupted; 2 whole shards in .* continues"):
            run_packing(AllNumbers(unit=Endless), str(out), ArrayShare(), workers, lambda _: None)
    finally:
        signal.signal(signal.SIGINT, before)
    assert set(tars(out)) == {"numbers-000.tar", "numbers-001.tar"}
    assert packed(out).done_before == 2


def test_error_in_a_worker_gives_up_what_has_not_begun() -> None:
    waiting: list[Future[Any]] = []

    def divided_by_nothing() -> None:
        with worker_pool(1) as pool:
            waiting.extend(pool.submit(divmod, 1, n) for n in range(50))
            waiting[0].result()

    with pytest.raises(ZeroDivisionError):
        divided_by_nothing()
    assert any(future.cancelled() for future in waiting)


@pytest.mark.parametrize("name", ["a,b", "set [2]", "what?", "all*"])
def test_folder_that_no_pattern_could_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--out: patterns of shards take"):
        packed(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
