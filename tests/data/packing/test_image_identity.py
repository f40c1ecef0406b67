"""One image is recognized under all its names, and different images are kept apart."""

import os
from pathlib import Path

import fsspec
import pytest

from efficientsam_pl.data.packing import image_identity
from efficientsam_pl.data.packing.image_identity import image_identities
from efficientsam_pl.data.packing.split import group_equals


def groups(*paths: str | Path) -> list[tuple[int, ...]]:
    return group_equals(image_identities([str(path) for path in paths]))


def test_links_spellings_and_copies_are_one_image(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"image")
    (tmp_path / "b/copy.jpg").write_bytes(b"image")
    (tmp_path / "hard.jpg").hardlink_to(tmp_path / "a.jpg")
    (tmp_path / "soft.jpg").symlink_to("a.jpg")
    (tmp_path / "folder").symlink_to("b")
    (tmp_path / "other.jpg").write_bytes(b"imagd")
    names = ["a.jpg", "other.jpg", "b/copy.jpg", "hard.jpg", "soft.jpg", "folder/copy.jpg",
             "b/../a.jpg"]  # fmt: skip
    assert groups(*(f"{tmp_path}/{name}" for name in names)) == [(0, 2, 3, 4, 5, 6), (1,)]


@pytest.mark.parametrize("place", [0, 5000, 9999])
def test_one_byte_makes_another_image_wherever_it_is(tmp_path: Path, place: int) -> None:
    content = bytearray(os.urandom(10_000))
    (tmp_path / "a.jpg").write_bytes(content)
    (tmp_path / "same.jpg").write_bytes(content)
    content[place] ^= 1
    (tmp_path / "b.jpg").write_bytes(content)
    assert groups(*(tmp_path / f"{n}.jpg" for n in ("a", "b", "same"))) == [(0, 2), (1,)]


def test_copies_in_a_store_are_one_image(tmp_path: Path) -> None:
    memory, root = fsspec.filesystem("memory"), f"memory://{tmp_path.name}-{os.getpid()}"
    for name, content in (("a/1.jpg", b"image"), ("b/2.jpg", b"image"), ("b/3.jpg", b"imagd")):
        memory.pipe(f"{root}/{name}", content)
    assert groups(*(f"{root}/{name}" for name in ("a/1.jpg", "b/3.jpg", "b/2.jpg", "c/4.jpg"))) == [
        (0, 2), (1,), (3,),
    ]  # fmt: skip


def test_missing_and_empty_files_are_equal_to_themselves_only(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).touch()
    assert groups(*(tmp_path / name for name in ("a", "b", "c", "d", "c"))) == [
        (0,), (1,), (2, 4), (3,),
    ]  # fmt: skip


def test_only_files_of_one_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    digest = image_identity._digest

    def noted(file: image_identity._File, path: str, last_bytes: int | None) -> bytes | None:
        read.append(Path(path).name)
        return digest(file, path, last_bytes)

    monkeypatch.setattr(image_identity, "_digest", noted)
    for size in (10, 20, 20, 30):
        (tmp_path / f"{len(list(tmp_path.iterdir()))}.jpg").write_bytes(os.urandom(size))
    assert len(groups(*sorted(tmp_path.iterdir()))) == 4
    assert sorted(read) == ["1.jpg", "2.jpg"]
