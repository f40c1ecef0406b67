"""Photos that are done survive kills, other ranks and other numbers of them."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.results import journal as parts_module
from efficientsam_pl.evaluation.results.journal import ResultJournal
from efficientsam_pl.evaluation.results.record import VERSION, ImageRecord, from_line

SETTINGS = {"model": {"name": "tiny", "weights_sha256": "abc"}, "seed": 0, "protocols": ("box",)}


def begun(folder: Path, started: str = "one", fresh: bool = False) -> ResultJournal:
    parts = ResultJournal(folder / "a.parts", from_line)
    parts.begin(SETTINGS, started, fresh)
    return parts


def add(
    parts: ResultJournal, rank: int, *photos: int, damage: tuple[str, str, str] | None = None
) -> None:
    with parts.writer(rank) as writer:
        for photo in photos:
            writer.add(ImageRecord(photo, damage=damage))


def test_images_of_all_ranks_come_in_order(tmp_path: Path) -> None:
    parts = begun(tmp_path)
    add(parts, 1, 7, 3)
    add(parts, 0, 10, 2)
    add(parts, 1, 5)
    assert [record.photo for record in parts.finished().records()] == [2, 3, 5, 7, 10]
    assert parts.finished().whole() == {2, 3, 5, 7, 10}


@pytest.mark.parametrize("torn", [b'{"photo":9,"inst', b"\0" * 30, b"x" * (3 << 20), b""])
def test_torn_last_line_is_told_and_cut_off(torn: bytes, tmp_path: Path) -> None:
    parts = begun(tmp_path)
    add(parts, 0, 1, 2)
    file = parts.folder / "rank-0.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + torn)
    assert parts.finished().torn == ({"rank-0.jsonl": 1} if torn else {})
    assert parts.finished().whole() == {1, 2}
    add(parts, 0, 3)
    assert file.read_bytes().startswith(whole + b'{"photo":3')
    assert parts.finished().whole() == {1, 2, 3}
    assert parts.finished().torn == {}


def test_file_of_a_torn_line_alone_is_emptied(tmp_path: Path) -> None:
    parts = begun(tmp_path)
    (parts.folder / "rank-0.jsonl").write_bytes(b'{"photo"')
    add(parts, 0, 4)
    assert parts.finished().whole() == {4}


def test_damaged_image_is_tried_again_and_its_result_counts(tmp_path: Path) -> None:
    parts = begun(tmp_path)
    add(parts, 0, 1, 2, damage=("missing photo", "a.jpg", ""))
    assert parts.finished().whole() == set()
    add(parts, 1, 1)
    add(parts, 2, 1, damage=("missing photo", "a.jpg", ""))
    found = {one.photo: one.damage for one in parts.finished().records()}
    assert found == {1: None, 2: ("missing photo", "a.jpg", "")}


def test_hashes_of_the_images_with_results_are_known(tmp_path: Path) -> None:
    parts = begun(tmp_path)
    add(parts, 0, 1, damage=("bad photo", "a.jpg", ""))
    with parts.writer(1) as writer:
        writer.add(ImageRecord(2, sha256="ab"))
        writer.add(ImageRecord(3, sha256="cd"))
    assert parts.finished().hashes() == {2: "ab", 3: "cd"}


def test_another_evaluation_is_refused_with_what_differs(tmp_path: Path) -> None:
    add(begun(tmp_path), 0, 1)
    other = {**SETTINGS, "model": {"name": "tiny", "weights_sha256": "def"}, "seed": 1}
    parts = ResultJournal(tmp_path / "a.parts", from_line)
    with pytest.raises(UserError) as caught:
        parts.begin(other, "two", fresh=False)
    told = str(caught.value)
    assert 'model.weights_sha256="abc" for "def"; seed=0 for 1' in told
    assert "fresh=true" in told
    assert "\n" not in told
    assert parts.finished().whole() == {1}
    parts.begin(other, "two", fresh=True)
    assert parts.finished().whole() == set()


@pytest.mark.parametrize("version", [None, 3, 5])
def test_lines_of_another_version_are_refused_until_thrown_away(
    version: int | None, tmp_path: Path
) -> None:
    """The first version stood nowhere."""
    add(begun(tmp_path), 0, 1)
    settings = tmp_path / "a.parts/settings.json"
    known = json.loads(settings.read_text())
    assert known.pop("version") == VERSION == 4
    settings.write_text(json.dumps(known | ({} if version is None else {"version": version})))
    told = f"a.parts holds photos .* in version {version or 1} .* writes version 4: .*fresh=true"
    with pytest.raises(UserError, match=told) as caught:
        begun(tmp_path)
    assert "\n" not in str(caught.value)
    assert begun(tmp_path, "two", fresh=True).finished().whole() == set()
    begun(tmp_path, "three")


def test_fresh_start_is_cleared_by_one_rank_alone(tmp_path: Path) -> None:
    add(begun(tmp_path), 0, 1)
    first = begun(tmp_path, "two", fresh=True)
    add(first, 0, 5)
    second = begun(tmp_path, "two", fresh=True)  # a rank that comes late, or a requeued job
    assert second.finished().whole() == {5}
    assert begun(tmp_path, "three", fresh=True).finished().whole() == set()


def test_settings_that_cannot_be_read_are_told_unless_thrown_away(tmp_path: Path) -> None:
    parts = begun(tmp_path)
    (parts.folder / "settings.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        begun(tmp_path)
    begun(tmp_path, fresh=True)
    assert json.loads((parts.folder / "settings.json").read_text())["settings"]["seed"] == 0


def test_lines_without_settings_are_not_taken(tmp_path: Path) -> None:
    parts = begun(tmp_path)
    add(parts, 0, 1)
    (parts.folder / "settings.json").unlink()
    assert begun(tmp_path).finished().whole() == set()


def test_two_processes_never_write_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "_PATIENCE_S", 0.1)
    parts = begun(tmp_path)
    with (
        parts.writer(0),
        pytest.raises(UserError, match="another process is adding to it"),
        ResultJournal(parts.folder, from_line).writer(0),
    ):
        pass
    add(parts, 0, 1)


def _write_for_ever(folder: Path) -> None:
    with ResultJournal(folder, from_line).writer(0) as writer:
        for photo in range(10**9):
            writer.add(ImageRecord(photo))


def test_lines_written_before_a_kill_are_there(tmp_path: Path) -> None:
    parts = begun(tmp_path)
    spawned = multiprocessing.get_context("spawn").Process(
        target=_write_for_ever, args=(parts.folder,)
    )
    spawned.start()
    file = parts.folder / "rank-0.jsonl"
    until = time.monotonic() + 60
    while (not file.exists() or file.stat().st_size < 10_000) and time.monotonic() < until:
        time.sleep(0.02)
    assert spawned.pid is not None
    os.kill(spawned.pid, signal.SIGKILL)
    spawned.join()
    done = parts.finished().whole()
    assert done == set(range(len(done)))
    assert len(done) > 50
    add(parts, 0, 10**10)
    assert parts.finished().whole() == done | {10**10}
