"""Folders of images: what is read, and what is counted and named."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientsam_pl.data.images.files import (
    SUFFIXES,
    images_in,
    is_image_name,
    list_folder,
    read_image,
    read_image_file,
)
from efficientsam_pl.errors import UserError


def write(path: Path, form: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (9, 99, 199)).save(path, form)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Images of every suffix in both cases, and everything that is none."""
    folder = tmp_path / "mixed"
    forms = {".jpe": "JPEG", ".jfif": "JPEG"}
    for suffix in SUFFIXES:
        write(folder / f"lower{suffix}", forms.get(suffix))
        write(folder / f"UPPER{suffix.upper()}", forms.get(suffix))
    (folder / "notes.txt").write_text("no image")
    (folder / "a.heic").write_bytes(b"no image either")
    (folder / "._lower.jpg").write_bytes(b"a Mac's metadata")
    (folder / "x.jpg").symlink_to(folder / "gone.jpg")
    (folder / "linked.jpg").symlink_to(folder / "lower.jpg")
    write(folder / "old" / "inside.png")
    (folder / "folder.jpg").mkdir()
    return folder


def test_every_suffix_in_any_case_is_an_image(mixed: Path) -> None:
    listing = images_in(mixed)
    expected = {f"lower{s}" for s in SUFFIXES} | {f"UPPER{s.upper()}" for s in SUFFIXES}
    assert listing.images == tuple(sorted(expected | {"linked.jpg"}))
    for name in listing.images:
        assert read_image(mixed / name).shape == (4, 6, 3), name


def test_everything_else_is_counted_and_named_on_a_line(mixed: Path) -> None:
    assert images_in(mixed).skipped_line() == (
        "skipped: 3 other files (._lower.jpg, a.heic, notes.txt), 1 broken link (x.jpg), "
        "2 folders (folder.jpg/, old/)"
    )


def test_a_folder_of_images_alone_has_no_line(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    assert images_in(tmp_path).skipped_line() is None


def test_at_most_five_names_of_a_kind_are_listed(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"{number}.txt").touch()
    line = list_folder(tmp_path).skipped_line()
    assert line == "skipped: 7 other files (0.txt, 1.txt, 2.txt, 3.txt, 4.txt, ...)"


def test_subfolders_are_listed_where_they_are_wanted(mixed: Path) -> None:
    listing = list_folder(mixed, recursive=True)
    assert "old/inside.png" in listing.images
    assert listing.folders == ()
    assert set(listing.images) - {"old/inside.png"} == set(images_in(mixed).images)


def test_a_link_to_an_outer_folder_is_followed_once_only(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "loop").symlink_to(tmp_path)
    listing = list_folder(tmp_path, recursive=True)
    assert listing.images == ("in/a.png",)
    assert listing.repeated == ("in/loop/",)


def test_each_real_folder_is_listed_once_whatever_links_lead_to_it(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / name / f"{name}.png")
    for name in ("a", "b", "c"):
        for other in {"a", "b", "c"} - {name}:
            (tmp_path / name / f"to_{other}").symlink_to(tmp_path / other)
    (tmp_path / "0").symlink_to(tmp_path / "c")  # a link that is listed before its folder
    listing = list_folder(tmp_path, recursive=True)
    assert listing.images == ("a/a.png", "b/b.png", "c/c.png")
    assert len(listing.repeated) == 7


def test_hidden_folders_and_thumbnails_of_a_tree_are_named(tmp_path: Path) -> None:
    hidden = (".thumbnails", ".ipynb_checkpoints", "@eaDir", "__MACOSX")
    for name in ("seen", *hidden):
        write(tmp_path / "in" / name / "a.png")
    listing = list_folder(tmp_path / "in", recursive=True)
    assert listing.images == ("seen/a.png",)
    assert listing.hidden == tuple(sorted(f"{name}/" for name in hidden))
    assert list_folder(tmp_path / "in" / ".thumbnails", recursive=True).images == ("a.png",)


def test_names_that_are_not_utf8_are_printed_by_their_bytes(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).touch()
    assert list_folder(tmp_path).skipped_line() == "skipped: 1 other file (caf%E9.txt)"


def test_a_linked_folder_beside_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "class").symlink_to(tmp_path / "elsewhere")
    assert list_folder(tmp_path / "set", recursive=True).images == ("class/a.png",)


def test_a_folder_without_an_image_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.heic").touch()
    with pytest.raises(
        UserError, match=r"--image: no image in .*\(\.jpg, .*1 other file \(a\.heic"
    ):
        images_in(tmp_path)


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.png")
    write(tmp_path / "locked.png")
    # root may read everything
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("locked.png"))
    listing = images_in(tmp_path)
    assert listing.images == ("a.png",)
    assert listing.skipped_line() == "skipped: 1 unreadable file (locked.png)"


@pytest.mark.parametrize("name", ["a.JPG", "b/c.Tiff", "a.b.gif", "x.jfif"])
def test_names_of_images(name: str) -> None:
    assert is_image_name(name)


@pytest.mark.parametrize("name", ["a.heic", "b/._c.jpg", "jpg", "a.jpg.txt", "a.npy"])
def test_names_of_other_files(name: str) -> None:
    assert not is_image_name(name)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--image: no such file: .*gone\.png"):
        read_image(tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"--image: .*text\.png is no image that can be read: nei"):
        read_image(tmp_path / "text.png")


def test_a_file_is_read_upright(tmp_path: Path, tagged: Callable[..., bytes]) -> None:
    image = np.zeros((16, 24, 3), np.uint8)
    image[:8] = 250
    (tmp_path / "a.jpg").write_bytes(tagged(image, 6))
    file = read_image_file(tmp_path / "a.jpg")
    assert file.turn == "turned"
    assert np.abs(file.pixels.astype(int) - image).max() < 8
