"""Names that exporters write are resolved to the files that they mean, or to none."""

import os
from pathlib import Path

import fsspec
import pytest

from efficientsam_pl.data.coco.paths import Resolved, resolve_paths


@pytest.fixture(params=["local", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "images")
    return f"memory://{tmp_path.name}-{os.getpid()}/images"


def write(folder: str, *names: str) -> None:
    fs, plain = fsspec.core.url_to_fs(folder)
    for name in names:
        path = f"{plain}/{name}"
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        fs.pipe(path, b"image")


def resolve(folder: str, *names: str) -> Resolved[str]:
    return resolve_paths({name: [name] for name in names}, folder)


def below(folder: str, resolved: Resolved[str]) -> dict[str, str]:
    return {name: path.removeprefix(f"{folder}/") for name, path in resolved.paths.items()}


def test_exact_names_are_joined_to_the_folder_as_they_are(folder: str) -> None:
    names = ["a.jpg", "train/b c.jpg", "50%25.jpg", "Ä.jpg", "A.JPG", ".hidden/x.y.z"]
    write(folder, *names)
    resolved = resolve(folder, *names)
    assert resolved.paths == {name: f"{folder}/{name}" for name in names}
    assert resolved.missing == resolved.repaired == {}
    assert resolve(f"{folder}/", "a.jpg").paths == {"a.jpg": f"{folder}/a.jpg"}


@pytest.mark.parametrize(
    ("name", "file", "rules"),
    [
        ("train\\a.jpg", "train/a.jpg", "slashes"),
        ("train//a.jpg", "train/a.jpg", "slashes"),
        ("./train/a.jpg", "train/a.jpg", "dots"),
        ("val/../train/./a.jpg", "train/a.jpg", "dots"),
        ("../images/train/a.jpg", "train/a.jpg", "dots"),
        ("train/a%20b.jpg", "train/a b.jpg", "percent-encoding"),
        ("train%2Fa.jpg", "train/a.jpg", "percent-encoding"),
        ("e\u0301/a\u0308.jpg", "\u00e9/\u00e4.jpg", "Unicode form"),
        ("\u00e4.jpg", "a\u0308.jpg", "Unicode form"),
        ("images/train/a.jpg", "train/a.jpg", "leading folders"),
        ("images/train/a.jpg", "a.jpg", "leading folders"),
        ("/home/me/set/train/a.jpg", "train/a.jpg", "slashes, leading folders"),
        ("C:\\set\\train\\a.jpg", "train/a.jpg", "slashes, leading folders"),
        ("Train/A.JPG", "train/a.jpg", "case"),
        ("https://host/bucket/train/a.jpg", "train/a.jpg", "slashes, URL"),
        ("s3://bucket/a.jpg", "a.jpg", "slashes, URL"),
        ("D:\\My%20Set\\TRAIN\\a%20b.JPG", "train/a b.jpg",
         "slashes, percent-encoding, leading folders, case"),
    ],
)  # fmt: skip
def test_each_repair_leads_to_the_file_and_is_named(
    folder: str, name: str, file: str, rules: str
) -> None:
    write(folder, file, "other.jpg")
    resolved = resolve(folder, name)
    assert below(folder, resolved) == {name: file}
    assert resolved.repaired == {name: rules}


def test_exact_file_wins_over_what_a_repair_would_take(folder: str) -> None:
    write(folder, "a%20b.jpg", "a b.jpg", "A.jpg", "a.jpg", "images/a.jpg")
    names = ["a%20b.jpg", "A.jpg", "images/a.jpg"]
    resolved = resolve(folder, *names)
    assert below(folder, resolved) == {name: name for name in names}
    assert resolved.repaired == {}


def test_exact_second_name_wins_over_a_repaired_first_name(folder: str) -> None:
    write(folder, "a.jpg", "b.jpg")
    resolved = resolve_paths({1: ["x/a.jpg", "b.jpg"]}, folder)
    assert resolved.paths == {1: f"{folder}/b.jpg"}


def test_longest_end_of_a_path_that_fits_is_taken(folder: str) -> None:
    write(folder, "train/a.jpg", "a.jpg")
    assert below(folder, resolve(folder, "x/train/a.jpg")) == {"x/train/a.jpg": "train/a.jpg"}


def test_two_names_that_fall_back_to_one_file_both_stay_unresolved(folder: str) -> None:
    write(folder, "0001.jpg", "0002.jpg")
    resolved = resolve(folder, "cam1/0001.jpg", "cam2/0001.jpg", "cam1/0002.jpg")
    assert below(folder, resolved) == {"cam1/0002.jpg": "0002.jpg"}
    assert resolved.missing == {
        f"cam{i}/0001.jpg": f"{folder}/cam{i}/0001.jpg (ambiguous: cam{3 - i}/0001.jpg may be the "
        f"same file {folder}/0001.jpg)"
        for i in (1, 2)
    }
    assert resolved.repaired.keys() == {"cam1/0002.jpg"}


def test_file_that_is_named_exactly_is_no_fallback_of_another_name(folder: str) -> None:
    write(folder, "0001.jpg")
    resolved = resolve(folder, "cam2/0001.jpg", "0001.jpg", "0001.JPG")
    assert below(folder, resolved) == {"0001.jpg": "0001.jpg"}
    assert resolved.missing.keys() == {"cam2/0001.jpg", "0001.JPG"}


def test_file_of_a_mere_spelling_is_no_fallback_of_another_name(folder: str) -> None:
    write(folder, "b/a 1.jpg")
    resolved = resolve(folder, "B/a 1.jpg", "b\\a%201.jpg")
    assert below(folder, resolved) == {"b\\a%201.jpg": "b/a 1.jpg"}


def test_spellings_of_one_name_are_one_file(folder: str) -> None:
    write(folder, "b/a 1.jpg")
    names = ["b/a 1.jpg", "b\\a 1.jpg", "./b/a%201.jpg"]
    assert below(folder, resolve(folder, *names)) == dict.fromkeys(names, "b/a 1.jpg")


def test_one_guessed_name_under_two_keys_is_one_file(folder: str) -> None:
    write(folder, "a.jpg")
    resolved = resolve_paths({1: ["/data/x/a.jpg"], 2: ["/data/x/a.jpg"]}, folder)
    assert resolved.paths == dict.fromkeys((1, 2), f"{folder}/a.jpg")


def test_name_that_fits_two_files_by_case_is_named_as_ambiguous(folder: str) -> None:
    write(folder, "a.jpg", "A.jpg")
    resolved = resolve(folder, "a.JPG")
    assert resolved.paths == {}
    assert resolved.missing == {"a.JPG": f"{folder}/a.JPG (ambiguous: A.jpg and a.jpg)"}


def test_name_that_fits_files_in_two_folders_by_case_is_named_as_ambiguous(folder: str) -> None:
    write(folder, "Train/a.jpg", "train/a.jpg")
    assert "ambiguous: Train/a.jpg and train/a.jpg" in resolve(folder, "TRAIN/a.jpg").missing[
        "TRAIN/a.jpg"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["../secret.jpg", "a/../../secret.jpg", "..\\secret.jpg",
                                  "%2E%2E/secret.jpg", "../../../../../../../../secret.jpg",
                                  "../images", ".."])  # fmt: skip
def test_dots_never_leave_the_folder(folder: str, name: str) -> None:
    write(f"{folder}/..", "secret.jpg")
    write(folder, "secret.jpg", "a/b.jpg")
    resolved = resolve(folder, name)
    assert resolved.paths == {}
    assert resolved.missing == {name: f"{folder}/{name} (leaves the folder)"}


def test_missing_files_are_named_by_their_first_path(folder: str) -> None:
    write(folder, "a.jpg")
    names = {1: ["val2017/b.jpg", "b.jpg"], 2: ["a.jpg"], 3: ["/"], 4: ["a.jpg/c.jpg"], 5: ["a"]}
    resolved = resolve_paths(names, folder)
    assert resolved.paths == {2: f"{folder}/a.jpg"}
    assert resolved.missing == {
        1: f"{folder}/val2017/b.jpg",
        3: f"{folder}//",
        4: f"{folder}/a.jpg/c.jpg",
        5: f"{folder}/a",
    }


def test_folder_is_no_image(folder: str) -> None:
    write(folder, "a.jpg/b.jpg")
    assert resolve(folder, "a.jpg", "A.jpg").paths == {}


def test_folder_that_does_not_exist_has_no_file(folder: str) -> None:
    assert resolve(folder, "a.jpg").missing == {"a.jpg": f"{folder}/a.jpg"}


def test_broken_and_circular_links_are_missing_files_and_sound_links_are_files(
    tmp_path: Path,
) -> None:
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nothing.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "file.jpg").touch()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "file.jpg")
    names = ["broken.jpg", "loop.jpg", "file.jpg", "link.jpg"]
    assert resolve(str(tmp_path), *names).paths.keys() == {"file.jpg", "link.jpg"}


def test_a_web_server_is_taken_at_its_word() -> None:
    folder = "https://host.invalid/images"
    resolved = resolve(folder, "a.jpg", "b%20c.jpg", "train\\d.jpg", "../e.jpg")
    assert below(folder, resolved) == {
        "a.jpg": "a.jpg",
        "b%20c.jpg": "b%20c.jpg",
        "train\\d.jpg": "train/d.jpg",
    }
    assert resolved.repaired == {"train\\d.jpg": "slashes"}
    assert resolved.missing == {"../e.jpg": f"{folder}/../e.jpg (leaves the folder)"}


def test_a_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(str(tmp_path), *(f"train/{i}.jpg" for i in range(20)))
    scanned: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(str(path)) or scandir(path))
    names = [f"train/{i}.jpg" for i in range(10)] + [f"x/TRAIN/{i}.JPG" for i in range(10, 20)]
    assert len(resolve(str(tmp_path), *names).paths) == 20
    assert len(scanned) == len(set(scanned))
