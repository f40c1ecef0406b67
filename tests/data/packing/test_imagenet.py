import io
import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image, ImageOps

from efficientsam_pl.data.images.decode import decode_image, read_header
from efficientsam_pl.data.packing.imagenet import Imagenet, read_source
from efficientsam_pl.data.packing.runner import ArrayShare
from efficientsam_pl.data.packing.writer import PackSummary
from efficientsam_pl.errors import UserError

TarOf = Callable[[Path, dict[str, bytes]], Path]
Pack = Callable[..., PackSummary]
Unpacked = Callable[[Path], dict[str, bytes]]
JpegOf = Callable[[np.ndarray], bytes]
Noise = Callable[..., np.ndarray]
CLASSES = ("n02", "n01", "n10")  # 1, 0, 2 by torchvision's ImageFolder


def opened(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


def encoded(image: Image.Image, form: str) -> bytes:
    data = io.BytesIO()
    image.save(data, form)
    return data.getvalue()


@pytest.fixture
def images(jpeg_of: JpegOf, noise: Noise) -> dict[str, dict[str, bytes]]:
    """Four images each of three classes, by class and name."""
    return {
        name: {f"{name}_{i}.JPEG": jpeg_of(noise(10 * number + i)) for i in range(4)}
        for number, name in enumerate(CLASSES)
    }


Photos = dict[str, dict[str, bytes]]


@pytest.fixture
def tree(tmp_path: Path, images: Photos) -> Path:
    for name, files in images.items():
        (tmp_path / "tree" / name).mkdir(parents=True)
        for file, content in files.items():
            (tmp_path / "tree" / name / file).write_bytes(content)
    return tmp_path / "tree"


@pytest.fixture
def train_tar(tmp_path: Path, images: Photos, tar_of: TarOf) -> Path:
    inner = {f"{c}.tar": tar_of(tmp_path / c, files).read_bytes() for c, files in images.items()}
    return tar_of(tmp_path / "ILSVRC2012_img_train.tar", inner)


def expected(images: Photos) -> dict[str, bytes]:
    labels = {name: number for number, name in enumerate(sorted(images))}
    jpegs = {f"{n.split('.')[0]}.jpg": c for files in images.values() for n, c in files.items()}
    classes = {
        f"{n.split('.')[0]}.cls": str(labels[name]).encode()
        for name, files in images.items()
        for n in files
    }
    return jpegs | classes


def test_tar_of_tars_and_folder_tree_make_the_same_shards(
    train_tar: Path, tree: Path, tmp_path: Path, images: Photos, pack: Pack, unpacked: Unpacked
) -> None:
    for name, source in (("a", train_tar), ("b", tree)):
        summary = pack(Imagenet(str(source), None, 5), tmp_path / name)
        assert (summary.samples, len(summary.shards), summary.skipped) == (12, 3, [])
        assert unpacked(tmp_path / name) == expected(images)
    for path in (tmp_path / "a").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_classes_are_numbered_as_torchvision_does(tree: Path) -> None:
    folder = pytest.importorskip("torchvision.datasets").ImageFolder(str(tree))
    theirs = {Path(path).stem: label for path, label in folder.samples}
    assert {item.key: item.label for item in read_source(str(tree))[0]} == theirs


def test_class_tars_are_numbered_by_names_without_their_suffix(
    tmp_path: Path, tar_of: TarOf, jpeg_of: JpegOf, noise: Noise
) -> None:
    jpeg = jpeg_of(noise(0))
    tars = {
        f"{c}.tar": tar_of(tmp_path / c, {f"{c}1.jpg": jpeg}).read_bytes() for c in ("a-b", "a")
    }
    items = read_source(str(tar_of(tmp_path / "all.tar", tars)))[0]
    assert [(i.key, i.label) for i in items] == [("a-b1", 1), ("a1", 0)]  # "a" < "a-b"


def test_images_of_a_class_do_not_follow_each_other(tree: Path) -> None:
    [unit] = Imagenet(str(tree), None, 100).units(ArrayShare())
    labels = [item.label for item in unit.items]
    assert sorted(labels) == sorted([0, 1, 2] * 4)
    assert sum(a != b for a, b in pairwise(labels)) > 3  # sorted: 2


def test_order_depends_on_the_names_alone(tree: Path, train_tar: Path) -> None:
    units = [next(iter(Imagenet(str(s), None, 100).units(ArrayShare()))) for s in (tree, train_tar)]
    (tree / "n01" / "n01_9.JPEG").write_bytes(b"one more")
    units.append(next(iter(Imagenet(str(tree), None, 100).units(ArrayShare()))))
    keys = [[item.key for item in unit.items if item.key != "n01_9"] for unit in units]
    assert keys[0] == keys[1]
    assert keys[0] != keys[2]
    assert set(keys[0]) == set(keys[2])


@pytest.mark.parametrize("separator", [" ", "\t", "   "])
def test_list_with_classes_gives_its_numbers(
    separator: str, tree: Path, tmp_path: Path, pack: Pack, unpacked: Unpacked
) -> None:
    lines = [f"n01/n01_0.JPEG{separator}7", "", f"{tree}/n02/n02_1.JPEG{separator}0"]
    (tree / "list.txt").write_text("\n".join(lines))
    pack(Imagenet(str(tree / "list.txt"), None, 5), tmp_path / "out")
    files = unpacked(tmp_path / "out")
    assert {n: c for n, c in files.items() if n.endswith("cls")} == {
        "n01_0.cls": b"7",
        "n02_1.cls": b"0",
    }
    assert files["n01_0.jpg"] == (tree / "n01/n01_0.JPEG").read_bytes()


def test_list_without_classes_makes_images_alone(
    tree: Path, tmp_path: Path, pack: Pack, unpacked: Unpacked
) -> None:
    (tree / "my photo 3.jpg").write_bytes((tree / "n01/n01_0.JPEG").read_bytes())
    (tree / "list.txt").write_text("n01/n01_0.JPEG\nmy photo 3.jpg\n")
    pack(Imagenet(str(tree / "list.txt"), None, 5), tmp_path / "out")
    assert set(unpacked(tmp_path / "out")) == {"n01_0.jpg", "my photo 3.jpg"}


def test_flat_folder_has_no_classes(
    tree: Path, tmp_path: Path, pack: Pack, unpacked: Unpacked
) -> None:
    (tree / "n01" / "notes.txt").write_text("no photo")
    pack(Imagenet(f"{tree}/n01/", None, 5), tmp_path / "out")
    assert set(unpacked(tmp_path / "out")) == {f"n01_{i}.jpg" for i in range(4)}


def test_linked_images_and_folders_are_followed(tree: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    (linked / "n02").mkdir(parents=True)
    (linked / "n01").symlink_to(tree / "n01")
    (linked / "n02" / "one.JPEG").symlink_to(tree / "n02" / "n02_0.JPEG")
    items = read_source(str(linked))[0]
    assert [(i.key, i.label) for i in items] == [(f"n01_{i}", 0) for i in range(4)] + [("one", 1)]


def test_folder_with_marks_of_a_pattern_in_its_name_is_read(tree: Path, tmp_path: Path) -> None:
    odd = tmp_path / "my [set], 2.0 *"
    tree.rename(odd)
    assert len(read_source(str(odd))[0]) == 12


def test_images_of_one_name_in_two_classes_get_both_names(tree: Path, tmp_path: Path) -> None:
    for name in ("n01", "n02"):
        (tree / name / "x.y.JPEG").write_bytes((tree / "n10/n10_0.JPEG").read_bytes())
    keys = {item.key: item.label for item in read_source(str(tree))[0]}
    assert (len(keys), keys["n01_x_y"], keys["n02_x_y"]) == (14, 0, 1)
    (tree / "list.txt").write_text("n01/x.y.JPEG 3\nn02/x.y.JPEG 4\n")
    listed = {item.key: item.label for item in read_source(str(tree / "list.txt"))[0]}
    assert listed == {"n01_x_y": 3, "n02_x_y": 4}


def test_keys_of_a_tar_have_no_dot(tmp_path: Path, tar_of: TarOf, jpeg_of: JpegOf) -> None:
    image = jpeg_of(np.zeros((8, 8, 3), dtype=np.uint8))
    path = tar_of(tmp_path / "flat.tar", {"./v1.2/a.b.jpg": image})
    assert [(i.key, i.label) for i in read_source(str(path))[0]] == [("a_b", None)]


def test_grey_cmyk_and_png_named_jpeg_keep_their_bytes_and_are_decoded(
    tmp_path: Path, noise: Noise, pack: Pack, unpacked: Unpacked
) -> None:
    image = Image.fromarray(noise(0))
    odd = {
        "grey": encoded(image.convert("L"), "JPEG"),
        "cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "png": encoded(image, "PNG"),
    }
    (tmp_path / "in").mkdir()
    for name, content in odd.items():
        (tmp_path / "in" / f"{name}.JPEG").write_bytes(content)
    pack(Imagenet(str(tmp_path / "in"), None, 5), tmp_path / "same")
    pack(Imagenet(str(tmp_path / "in"), 30, 5), tmp_path / "small")
    same, small = unpacked(tmp_path / "same"), unpacked(tmp_path / "small")
    for name, content in odd.items():
        assert same[f"{name}.jpg"] == content
        whole = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
        assert np.abs(decode_image(same[f"{name}.jpg"]).astype(int) - whole).max() <= 1
        shrunk = np.array(Image.open(io.BytesIO(small[f"{name}.jpg"])))
        reference = Image.fromarray(whole).resize((30, 20), Image.Resampling.BICUBIC)
        assert shrunk.shape == (20, 30, 3)
        assert np.abs(shrunk.astype(int) - np.array(reference)).mean() < 3


def test_corrupt_and_vanished_images_are_skipped_and_reported(
    tree: Path, tmp_path: Path, pack: Pack, unpacked: Unpacked
) -> None:
    (tree / "n01/n01_0.JPEG").write_bytes(b"no photo")
    (tree / "n01/n01_1.JPEG").write_bytes(b"")
    source = Imagenet(str(tree), None, 5)
    (tree / "n01/n01_2.JPEG").unlink()
    summary = pack(source, tmp_path / "out")
    assert summary.samples == 9
    assert {s.what for s in summary.skipped} == {"n01_0", "n01_1", "n01_2"}
    assert all(s.why for s in summary.skipped)
    assert len(unpacked(tmp_path / "out")) == 18


def test_corrupt_tar_is_an_error_that_names_it(train_tar: Path) -> None:
    content = train_tar.read_bytes()
    train_tar.write_bytes(content[: content.index(b"n10_2.JPEG")])
    with pytest.raises(UserError, match=r"img_train\.tar is corrupt: .*download it again"):
        read_source(str(train_tar))


def test_sources_that_cannot_be_read_are_errors_that_name_them(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.txt").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "words.txt").write_text("n01/n01_0.JPEG\nn01/notes.md 3\n")
    for source, message in {
        "gone": "no such file or folder: .*gone",
        "gone.tar": "no such file: .*gone",
        "*.tar": r"no such file: .*\*\.tar",
        "empty": "no image in .*empty",
        "photo.txt": "photo.txt is no list of files",
        "words.txt": "words.txt, line 2: 'n01/notes.md' is no image",
    }.items():
        with pytest.raises(UserError, match=rf"--source: {message}|--source: .*{message}"):
            Imagenet(str(tmp_path / source), None, 5)


def test_tree_and_tar_are_read_from_any_store(
    train_tar: Path, tree: Path, tmp_path: Path, images: Photos, pack: Pack, unpacked: Unpacked
) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(tree), "/imagenet/tree", recursive=True)
    store.put(str(train_tar), "/imagenet/train.tar")
    for name in ("tree", "train.tar"):
        pack(Imagenet(f"memory://imagenet/{name}", None, 5), tmp_path / name)
        assert unpacked(tmp_path / name) == expected(images)
    store.rm("/imagenet", recursive=True)


def test_real_images_are_packed_with_their_classes(
    shared: Path, tmp_path: Path, pack: Pack, unpacked: Unpacked
) -> None:
    source = shared / "data/imagenet_sample"
    summary = pack(Imagenet(str(source), None, 40), tmp_path / "out")
    there = sorted(source.glob("*/*.JPEG"))
    assert (summary.samples, summary.skipped) == (len(there), [])
    files = unpacked(tmp_path / "out")
    classes = sorted({path.parent.name for path in there})
    tagged = [path for path in there if opened(path).getexif().get(0x0112, 1) != 1]
    assert 0 < len(tagged) < len(there)
    assert summary.turns == {"turned": len(tagged)}
    for path in there:
        packed = files[f"{path.stem}.jpg"]
        if path in tagged:
            upright = np.array(ImageOps.exif_transpose(opened(path)).convert("RGB"))
            assert np.abs(decode_image(packed).astype(int) - upright).mean() < 4
            assert read_header(packed).orientation == 1
        else:
            assert packed == path.read_bytes()
        assert int(files[f"{path.stem}.cls"]) == classes.index(path.parent.name)
    with tarfile.open(tmp_path / "out/imagenet-000000.tar") as tar:
        assert len(tar.getnames()) == 80
