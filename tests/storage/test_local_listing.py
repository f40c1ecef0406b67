"""One pass over a folder lists what fsspec lists, and follows links as the system does."""

import os
from pathlib import Path

import fsspec
import pytest

from efficientsam_pl.storage import local_listing
from efficientsam_pl.storage.files import list_files, list_patterns, same_file, same_files
from efficientsam_pl.storage.filesystems import store


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files, folders and links of many kinds."""
    root = tmp_path / "root"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "folder.tar").mkdir()
    names = ("a.tar", "b.tar", ".hidden.tar", "a[1].tar", "c d.tar", "é.tar", "sub/x.tar", "t.txt")
    for number, name in enumerate(names):
        (root / name).write_bytes(b"x" * number)
    (root / "link.tar").symlink_to(root / "b.tar")
    (root / "away.tar").symlink_to("sub/x.tar")
    (root / "nowhere.tar").symlink_to("gone")
    (root / "loop.tar").symlink_to("loop.tar")
    (root / "folder-link.tar").symlink_to("sub")
    (tmp_path / "other").symlink_to(root)
    os.mkfifo(root / "pipe.tar")
    return root


def by_fsspec(pattern: str) -> dict[str, int]:
    fs = fsspec.filesystem("file")
    found = fs.glob(pattern, detail=True)
    return {
        os.path.normpath(name): info["size"]
        for name, info in found.items()
        if info["type"] == "file" or (info["islink"] and not fs.isdir(name))
    }


@pytest.mark.parametrize(
    "pattern",
    [
        *("*.tar", "*", "?.tar", "[ab].tar", "[!a]*.tar", "a[[]1].tar", ".*", "none-*.tar"),
        *(
            "sub/*",
            "sub/../*.tar",
            "gone/*.tar",
            "a.tar/*",
            "../other/*.tar",
            "*/*.tar",
            "**/*.tar",
        ),
    ],
)
def test_pattern_matches_what_it_does_in_fsspec(pattern: str, tree: Path) -> None:
    found = {file.path: file.bytes for file in list_files(f"{tree}/{pattern}")}
    assert found == by_fsspec(f"{tree}/{pattern}")
    assert list(found) == sorted(found)
    unsized = list_files(f"{tree}/{pattern}", sizes=False)
    assert [file.path for file in unsized] == list(found)


def test_many_names_of_a_folder_are_found_as_one_by_one(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [*(f"n-{number}.tar" for number in range(40)), *(p.name for p in tree.iterdir())]
    pattern = ",".join(f"{tree}/{name}" for name in names if name not in ("a[1].tar", "loop.tar"))
    one_by_one = [found for part in pattern.split(",") for found in list_files(part)]
    alone = "efficientsam_pl.storage.files._named_file"
    monkeypatch.setattr(alone, lambda *_: pytest.fail("one by one"))
    assert list_files(pattern) == sorted(one_by_one, key=lambda file: file.path)


def test_each_pattern_has_its_own_files(tree: Path) -> None:
    listed = list_patterns(f"{tree}/[ab].tar, {tree}/b*.tar, {tree}/none*.tar, memory://none/*")
    names = {part: [Path(file.path).name for file in files] for part, files in listed.items()}
    assert names == {
        f"{tree}/[ab].tar": ["a.tar", "b.tar"],
        f"{tree}/b*.tar": ["b.tar"],
        f"{tree}/none*.tar": [],
        "memory://none/*": [],
    }


def test_files_without_sizes_cost_no_call_each(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (passes.append(path), scandir(path))[1])
    for name in ("stat", "lstat", "readlink"):
        monkeypatch.setattr(os, name, lambda *_, **__: pytest.fail("a file was looked at"))
    assert [file.bytes for file in list_files(f"{tree}/?.tar", sizes=False)] == [-1, -1, -1]
    assert passes == [str(tree)]


def test_files_are_the_same_however_they_are_named(tree: Path) -> None:
    for pattern in (f"{tree}/*.tar", f"{tree.parent}/other/*.tar", f"{tree}/sub/*.tar"):
        files = list_files(pattern)
        assert same_files(files) == {file.path: os.path.realpath(file.path) for file in files}
    here = same_files(list_files(f"{tree}/*.tar"))
    assert here[f"{tree}/link.tar"] == same_file(f"{tree.parent}/other/b.tar")
    assert set(here.values()) > set(same_files(list_files(f"{tree.parent}/other/b.tar")).values())


@pytest.mark.parametrize("path", ["/", "//", "/a", "/a/", "/a//b", "/a b/[c]*", "/~x", "/a/../b/"])
def test_local_paths_are_those_of_fsspec(path: str) -> None:
    fs, plain = fsspec.core.url_to_fs(path)
    assert store(path) == (fs, plain)
    assert isinstance(store(path)[0], type(fs))


def test_only_patterns_of_names_are_listed_in_a_folder() -> None:
    paths = ["/a/*.tar", "/a/b.tar", "/*/b.tar", "/a/**", "/a/**/*.tar", "/*.tar"]
    assert local_listing.listable(paths) == ["/a/*.tar", "/*.tar"]
