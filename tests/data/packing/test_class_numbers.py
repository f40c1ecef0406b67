"""Class numbers of folders and tars, against torchvision's ImageFolder with `allow_empty`."""

import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from efficientsam_pl.data.packing.class_folders import tree_classes
from efficientsam_pl.data.packing.imagenet import Imagenet, read_source
from efficientsam_pl.data.packing.writer import PackSummary

ImageFolder = pytest.importorskip("torchvision.datasets").ImageFolder
Pack = Callable[..., PackSummary]
JpegOf = Callable[[np.ndarray], bytes]
Noise = Callable[..., np.ndarray]

# sorted by their names: "" first, upper case before lower case
FOLDERS = (
    ["n02/a.jpg", "n01/b.jpg"],
    ["n02/a.jpg", "n01/b.jpg", "empty/"],
    ["n02/a.jpg", "N01/b.jpg", "n1-2/c.jpg", "n1/d.jpg", "10/e.jpg", "9/f.jpg"],
    ["n02/deep/er/a.jpg", "n01/b.jpg", "n01/notes.txt", "words/notes.txt"],
    [".hidden/a.jpg", "n02/b.jpg", "n01/.thumbs/c.jpg", "n01/d.jpg"],
    ["@eaDir/a.jpg", "__MACOSX/b.jpg", "a/c.jpg", "Z/d.jpg"],
    ["loose.txt", "n02/a.jpg", "n03/b.jpg", "n04/"],
)


@pytest.fixture(params=FOLDERS, ids=lambda names: names[0])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tree of files with the names as content; a name with a slash at its end is a folder."""
    return made(tmp_path / "root", request.param)


def made(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(name.encode())
    return root


def tarred(tree: Path, outer: str) -> Path:
    path = tree.parent / "tree.tar"
    with tarfile.open(path, "w") as file:
        file.add(tree, outer)
    return path


def reference(tree: Path) -> dict[str, int]:
    """Labels by the images' names, without those of folders that packing leaves out."""
    folder = ImageFolder(str(tree), allow_empty=True)
    hidden = (".hidden", ".thumbs", "@eaDir", "__MACOSX")
    return {
        Path(path).stem: label
        for path, label in folder.samples
        if not set(Path(path).parts) & set(hidden)
    }


def test_folders_are_numbered_as_by_image_folder(tree: Path) -> None:
    items, inventory = read_source(str(tree))
    assert {item.key: item.label for item in items} == reference(tree)
    assert list(inventory.classes) == ImageFolder(str(tree), allow_empty=True).classes


@pytest.mark.parametrize("outer", [".", "root", "./data/imagenet/root"])
def test_a_tar_of_a_class_tree_has_the_classes_of_the_tree(tree: Path, outer: str) -> None:
    items, inventory = read_source(str(tarred(tree, outer)))
    assert {item.key: item.label for item in items} == reference(tree)
    assert list(inventory.classes) == ImageFolder(str(tree), allow_empty=True).classes


def test_a_tar_of_a_class_tree_makes_the_shards_of_the_tree(
    tmp_path: Path, pack: Pack, jpeg_of: JpegOf, noise: Noise
) -> None:
    names = [f"n{c}/{s}/{i}.jpg" for c in range(3) for s in "ab" for i in range(2)]
    tree = made(tmp_path / "root", names)
    for number, path in enumerate(sorted(tree.rglob("*.jpg"))):
        path.write_bytes(jpeg_of(noise(number)))
    pack(Imagenet(str(tree), None, 100), tmp_path / "a")
    pack(Imagenet(str(tarred(tree, "root")), None, 100), tmp_path / "b")
    shard = "imagenet-000000.tar"
    assert (tmp_path / "a" / shard).read_bytes() == (tmp_path / "b" / shard).read_bytes()


def test_a_single_class_below_an_outer_folder_is_a_class(tmp_path: Path) -> None:
    tree = made(tmp_path / "root", ["n01/a.jpg", "n01/b.jpg"])
    items, inventory = read_source(str(tarred(tree, "train")))
    assert [(item.key, item.label) for item in items] == [("a", 0), ("b", 0)]
    assert inventory.classes == ("n01",)


def test_a_tar_of_one_folder_of_images_has_no_classes(tmp_path: Path) -> None:
    tree = made(tmp_path / "root", ["a.jpg", "b.jpg", ".thumbs/a.jpg"])
    items, inventory = read_source(str(tarred(tree, "photos")))
    assert [(item.key, item.label) for item in items] == [("a", None), ("b", None)]
    assert inventory.classes == ()


def test_a_wrong_root_is_seen_by_its_classes(tmp_path: Path) -> None:
    names = [f"{part}/n0{c}/{part}{c}.jpg" for part in ("train", "val", "test") for c in (1, 2)]
    tree = made(tmp_path / "root", names)
    for source in (tree, tarred(tree, "imagenet")):
        inventory = read_source(str(source))[1]
        assert inventory.closing() == "; 3 classes: test, train, val"


def test_tars_inside_a_tar_count_as_folders_wherever_they_are() -> None:
    images = ["data/n1/a.jpg", "data/n3/n3/b.jpg"]
    archives = {"data/n1", "data/n2", "data/n3"}
    classes = tree_classes(images, ["data"], archives)
    assert (classes.root, classes.names) == ("data", ("n1", "n2", "n3"))
    alone = tree_classes(["n3/n3/b.jpg"], [], {"n3"})
    assert (alone.root, alone.names) == ("", ("n3",))
