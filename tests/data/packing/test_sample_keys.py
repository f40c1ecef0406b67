"""Keys of samples: equal for clean sets, unique for all others."""

import time
from pathlib import Path

import pytest

from efficientsam_pl.data.packing.imagenet import read_source
from efficientsam_pl.data.packing.sample_keys import sample_key, unique_keys
from efficientsam_pl.errors import UserError


def files(folder: Path, *names: str) -> str:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return str(folder)


@pytest.mark.parametrize(
    ("name", "key"), [("n01_1", "n01_1"), ("a.b.c", "a_b_c"), ("a/b", "a_b"), ("\udcff", "%FF")]
)
def test_keys_of_names(name: str, key: str) -> None:
    assert sample_key(name) == key


def test_equal_keys_are_numbered_and_others_kept() -> None:
    assert unique_keys(["b", "a", "c"]) == ["b", "a", "c"]
    assert unique_keys(["a", "a", "a_2", "a"]) == ["a", "a_3", "a_2", "a_4"]
    assert unique_keys(["a_2", "a", "a", "a_2"]) == ["a_2", "a", "a_3", "a_2_2"]


def test_hundred_thousand_equal_keys_take_linear_time() -> None:
    begin = time.perf_counter()
    assert len(set(unique_keys(["a"] * 100_000))) == 100_000
    assert time.perf_counter() - begin < 5


def test_two_images_of_one_key_are_renamed_and_named(tmp_path: Path) -> None:
    source = files(tmp_path / "in", "A/x.jpg", "B/x.jpg", "A/y.jpg", "A/y.png", "A/z.1.jpg")
    items, inventory = read_source(source)
    assert {item.key: Path(item.where.path).relative_to(source).as_posix() for item in items} == {
        "A_x": "A/x.jpg",
        "B_x": "B/x.jpg",
        "A_y": "A/y.jpg",
        "A_y_2": "A/y.png",
        "A_z_1": "A/z.1.jpg",
    }
    assert inventory.renamed == ["A/y.png -> A_y_2"]
    assert inventory.closing() == "; 2 classes: A, B; 1 image renamed"


def test_names_that_differ_in_their_dots_alone_are_renamed(tmp_path: Path) -> None:
    source = files(tmp_path / "in", "a.b.jpg", "a_b.jpg", "a.b.c.jpg")
    items, inventory = read_source(source)
    assert [item.key for item in items] == ["a_b", "a_b_2", "a_b_c"]
    assert inventory.renamed == ["a_b.jpg -> a_b_2"]


def test_a_line_that_is_twice_in_a_list_is_left_out(tmp_path: Path) -> None:
    folder = files(tmp_path / "in", "a.jpg", "b.jpg")
    (tmp_path / "in/list.txt").write_text("a.jpg 3\nb.jpg 1\na.jpg 3\nb.jpg 1\n")
    items, inventory = read_source(f"{folder}/list.txt")
    assert [(item.key, item.label) for item in items] == [("a", 3), ("b", 1)]
    assert inventory.closing() == "; left out: 2 repeated lines; 2 classes: 1, 3"


def test_an_image_of_two_classes_in_a_list_is_a_mistake(tmp_path: Path) -> None:
    folder = files(tmp_path / "in", "a.jpg")
    (tmp_path / "in/list.txt").write_text("a.jpg 3\na.jpg 4\n")
    with pytest.raises(UserError, match=r"line 2: 'a\.jpg' has class 4, and 3 on a line above"):
        read_source(f"{folder}/list.txt")
