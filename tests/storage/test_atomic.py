import errno
from pathlib import Path

import pytest

from efficientsam_pl.storage.atomic import atomic_write_bytes, atomic_write_local


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_file_appears_in_a_new_folder_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    with atomic_write_local(path) as file:
        file.write(b"first")
        assert not path.exists()
    assert contents(path.parent) == {"a.bin": b"first"}


def test_failed_renaming_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atomic_write_bytes(tmp_path / "a.png", b"old")

    def fail(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_write_bytes(tmp_path / "a.png", b"new")
    assert contents(tmp_path) == {"a.png": b"old"}


def test_failed_sync_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "step.png"
    atomic_write_bytes(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        atomic_write_bytes(path, b"new")
    assert contents(path.parent) == {"step.png": b"old"}


def test_two_writers_and_names_with_one_stem_do_not_share_a_partial_file(tmp_path: Path) -> None:
    with (
        atomic_write_local(tmp_path / "x.pt") as first,
        atomic_write_local(tmp_path / "x.pt") as second,
        atomic_write_local(tmp_path / "x.safetensors") as other,
    ):
        first.write(b"1" * 10_000)
        second.write(b"2" * 10_000)
        other.write(b"3")
    assert contents(tmp_path) == {"x.pt": b"1" * 10_000, "x.safetensors": b"3"}
