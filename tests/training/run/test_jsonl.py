"""A file that ranks share: nothing torn, nothing lost, cut where a checkpoint ends."""

import errno
import json
import multiprocessing
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efficientsam_pl.storage.jsonl import append_lines
from efficientsam_pl.training.run.rewind import truncate_jsonl

MountDisk = Callable[..., Any]


def line(step: int, rank: int = 0, size: int = 5) -> bytes:
    return json.dumps({"step": step, "rank": rank, "keys": ["k" * size]}).encode() + b"\n"


def append_many(path: Path, rank: int) -> None:
    for step in range(100):
        append_lines(path, line(step, rank, size=20_000))


def test_processes_that_append_at_once_tear_no_line(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=append_many, args=(path, rank)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    told = [json.loads(text) for text in path.read_text().splitlines()]
    for rank in range(3):
        assert [one["step"] for one in told if one["rank"] == rank] == list(range(100))


def test_half_a_line_of_a_killed_process_goes_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(line(0) + line(1, size=200_000)[:150_000])  # more than is looked at at once
    append_lines(path, line(1))
    assert path.read_bytes() == line(0) + line(1)
    path.write_bytes(b'{"st')
    append_lines(path, line(0))
    assert path.read_bytes() == line(0)


def test_lines_that_a_full_disk_takes_in_part_are_taken_back(mount_disk: MountDisk) -> None:
    disk = mount_disk()
    path = disk.path / "lines"
    path.write_bytes(line(0))
    disk.fill(leave=8192)
    with pytest.raises(OSError, match="No space left") as refused:
        append_lines(path, line(1, size=20_000))
    assert refused.value.errno == errno.ENOSPC
    assert path.read_bytes() == line(0)
    disk.empty()
    append_lines(path, line(1, size=20_000))
    assert path.read_bytes() == line(0) + line(1, size=20_000)


def test_disk_that_tells_at_closing_that_it_is_full_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As network file systems do."""
    path = tmp_path / "lines"
    path.write_bytes(line(0))
    close = os.close

    def refuse(descriptor: int) -> None:
        close(descriptor)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "close", refuse)
    with pytest.raises(OSError, match="quota"):
        append_lines(path, line(1))
    monkeypatch.undo()
    assert path.read_bytes() == line(0)


@pytest.mark.parametrize("seed", range(5))
def test_cut_file_is_what_a_plain_filter_keeps(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    steps = [draw.randrange(20) for _ in range(draw.randrange(60))]
    path, step = tmp_path / "lines", draw.randrange(21)
    torn = line(0)[: draw.randrange(1, 20)] if seed % 2 else b""
    path.write_bytes(b"".join(map(line, steps)) + torn)
    assert truncate_jsonl(path, step) == []
    assert path.read_bytes() == b"".join(line(one) for one in steps if one < step)


def test_broken_line_in_the_middle_is_cut_too(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(line(0) + line(1)[:9] + line(1) + line(2))
    truncate_jsonl(path, 3)
    assert path.read_bytes() == line(0) + line(2)


def test_nothing_is_written_where_there_is_nothing_to_cut(tmp_path: Path) -> None:
    assert truncate_jsonl(tmp_path / "missing", 3) == []
    assert not (tmp_path / "missing").exists()


def test_cut_on_a_full_disk_gives_back_what_it_could_not_keep(mount_disk: MountDisk) -> None:
    """Ranks wrote steps 2, 3, 2: of the cut at 3 the last line stays, and needs a place."""
    disk = mount_disk()
    path = disk.path / "lines"
    path.write_bytes(line(1) + line(2) + line(3) + line(2, rank=1))
    disk.fill()
    assert truncate_jsonl(path, 3) == [line(2, rank=1)]
    assert path.read_bytes() == line(1) + line(2)
    disk.empty()
    path.write_bytes(line(1) + line(2) + line(3) + line(2, rank=1))
    assert truncate_jsonl(path, 3) == []
    assert path.read_bytes() == line(1) + line(2) + line(2, rank=1)
