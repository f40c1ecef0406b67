import io
import json
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from efficientsam_pl.cli import main as cli
from efficientsam_pl.data.class_list import packed_class_names
from efficientsam_pl.data.images.label_map import decode_label_map
from efficientsam_pl.data.packing.label_classes import LabelClasses, read_label_classes
from efficientsam_pl.data.packing.label_maps import LabelMaps, PairSettings
from efficientsam_pl.data.packing.runner import ArrayShare, PackAgain, run_packing
from efficientsam_pl.data.packing.writer import PackSummary
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.errors import UserError

JpegOf = Callable[[np.ndarray], bytes]
Noise = Callable[..., np.ndarray]
Pack = Callable[..., PackSummary]
Unpacked = Callable[[Path], dict[str, bytes]]
CLASSES = LabelClasses(("sky", "road", "car"), ignored=frozenset({11}))
HALVES = np.array([[0] * 30 + [2] * 30] * 40, np.uint8)


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    data = io.BytesIO()
    image = Image.fromarray(pixels)
    if mode == "P":
        image = image.copy()
        image.putpalette([7, 7, 7, 0, 0, 0, 250, 3, 3] + [9] * 759)  # classes of equal colours too
    image.save(data, "PNG")
    return data.getvalue()


def grey_png(values: np.ndarray, depth: int) -> bytes:
    """A grey PNG of fewer than 8 bits a pixel, which Pillow cannot write."""
    height, width = values.shape
    bits = np.unpackbits(values[..., None], axis=2)[..., -depth:].reshape(height, -1)
    lines = b"".join(b"\0" + row.tobytes() for row in np.packbits(bits, axis=1))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    )
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture
def folders(tmp_path: Path, jpeg_of: JpegOf, noise: Noise) -> Callable[..., Path]:
    """Write label maps by name below `labels`, with an image of 40 x 60 for each below `images`."""

    def write(maps: Mapping[str, bytes | None], images: Mapping[str, bytes] | None = None) -> Path:
        jpegs = {f"{name}.jpg": jpeg_of(noise(n)) for n, name in enumerate(maps)} | (images or {})
        pngs = {f"{name}.png": data for name, data in maps.items() if data is not None}
        for kind, files in (("images", jpegs), ("labels", pngs)):
            for name, data in files.items():
                place = tmp_path / kind / name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
        return tmp_path

    return write


def source(root: Path, classes: LabelClasses = CLASSES, long_side: int | None = None) -> LabelMaps:
    settings = PairSettings(classes, long_side)
    return LabelMaps(str(root / "images"), str(root / "labels"), settings, 1000)


def labels_in(files: Mapping[str, bytes]) -> dict[str, list[list[int]]]:
    maps = {n.split(".")[0]: data for n, data in files.items() if n.endswith(".label.png")}
    return {key: decode_label_map(data).tolist() for key, data in maps.items()}


def test_ade20k_begins_with_one_and_ignores_zero(
    tmp_path: Path, jpeg_of: JpegOf, noise: Noise, unpacked: Unpacked
) -> None:
    root, out = tmp_path / "ADEChallengeData2016", tmp_path / "out"
    for folder in ("images/validation", "annotations/validation"):
        (root / folder).mkdir(parents=True)
    table = "Idx\tRatio\tTrain\tVal\tName\n1\t0.5\t9\t9\twall\n2\t0.5\t9\t9\tbed, bunk \n"
    (root / "objectInfo150.txt").write_text(table)
    jpeg, values = jpeg_of(noise(0)), np.repeat(np.array([[0, 1, 2]], np.uint8), 40, axis=0)
    (root / "images/validation/ADE_val_1.jpg").write_bytes(jpeg)
    (root / "annotations/validation/ADE_val_1.png").write_bytes(png(values.repeat(20, axis=1)))
    arguments = ["--source", str(root), "--split", "validation", "--out", str(out)]
    assert cli.main(["pack", "ade20k", *arguments, "--workers", "0"]) == 0
    files = unpacked(out)
    assert files["ADE_val_1.jpg"] == jpeg
    assert labels_in(files)["ADE_val_1"] == [[255] * 20 + [0] * 20 + [1] * 20] * 40
    assert packed_class_names(open_shards(f"{out}/*.tar"), "shards") == ("wall", "bed")
    assert cli.main(["check-shards", f"{out}/*.tar", "--workers", "0"]) == 0


def test_every_kind_of_grey_and_palette_png_gives_its_values(
    folders: Callable[..., Path], pack: Pack, unpacked: Unpacked, tmp_path: Path
) -> None:
    kinds = {
        "grey8": png(HALVES),
        "palette": png(HALVES, "P"),
        "grey16": png(HALVES.astype(np.uint16)),
        "deep/grey4": grey_png(HALVES, 4),
        "deep/er/grey2": grey_png(HALVES, 2),
    }
    summary = pack(source(folders(kinds)), tmp_path / "out")
    assert (summary.samples, summary.masks, summary.skipped) == (5, 10, [])
    expected = {name.rpartition("/")[2]: HALVES.tolist() for name in kinds}
    assert labels_in(unpacked(tmp_path / "out")) == expected


def test_what_cannot_be_used_is_skipped_by_name(
    folders: Callable[..., Path], pack: Pack, unpacked: Unpacked, tmp_path: Path
) -> None:
    maps = {
        "good": png(np.full((40, 60), 11, np.uint8)),
        "missing": None,
        "size": png(HALVES[:, 1:]),
        "label": png(np.full((40, 60), 300, np.uint16)),
        "colours": png(np.zeros((40, 60, 3), np.uint8)),
        "cut": png(HALVES)[:60],
        "image": png(HALVES),
    }
    root = folders(maps, {"image.jpg": b"no image"})
    (root / "labels" / "alone.png").write_bytes(png(HALVES))
    of_folders = source(root)
    summary = pack(of_folders, tmp_path / "out")
    assert labels_in(unpacked(tmp_path / "out")) == {"good": [[255] * 60] * 40}
    reasons = {skipped.what.split(".")[0]: skipped.why for skipped in summary.skipped}
    begins = {
        "missing": "missing label map: no such file",
        "size": "size mismatch: image (40, 60), annotations (40, 59)",
        "label": "unknown class: value 300, and the 3 classes are 0 to 2",
        "colours": "bad label map: colours",
        "cut": "bad label map:",
        "image": "bad photo:",
    }
    assert reasons.keys() == begins.keys()
    assert all(reasons[name].startswith(text) for name, text in begins.items())
    assert of_folders.inventory().names == {"label map without an image": ["alone.png"]}
    assert [note["ignored_images"] for note in summary.notes] == [1]


def test_mended_label_map_is_packed_again(
    folders: Callable[..., Path], pack: Pack, unpacked: Unpacked, tmp_path: Path
) -> None:
    root, out = folders({"a": png(HALVES), "b": None}), tmp_path / "out"
    assert pack(source(root), out).samples == 1
    (root / "labels/b.png").write_bytes(png(HALVES))
    assert pack(source(root), out).samples == 2
    (root / "labels/a.png").write_bytes(png(np.ones((40, 60), np.uint8)))
    os.utime(root / "labels/a.png", (1e9, 1e9))
    with pytest.raises(UserError, match=r"1 source of 1 shard .* changed after being packed"):
        pack(source(root), out)
    again = PackAgain("repack")
    run_packing(source(root), str(out), ArrayShare(), 0, lambda _: None, again)
    assert labels_in(unpacked(out))["a"] == np.ones((40, 60)).tolist()


def test_folders_in_a_store_are_paired_like_local_ones(
    folders: Callable[..., Path], pack: Pack, unpacked: Unpacked, tmp_path: Path
) -> None:
    root = folders({"x/a": png(HALVES), "y/a": png(HALVES), "b": png(HALVES)})
    store = fsspec.filesystem("memory")
    store.put(str(root / "images"), "/maps/images", recursive=True)
    store.put(str(root / "labels"), "/maps/labels", recursive=True)
    remote = LabelMaps("memory://maps/images", "memory://maps/labels", PairSettings(CLASSES), 9)
    pack(source(root), tmp_path / "local")
    pack(remote, tmp_path / "remote")
    store.rm("/maps", recursive=True)
    files = unpacked(tmp_path / "remote")
    assert files == unpacked(tmp_path / "local")
    assert {name.split(".")[0] for name in files} == {"x_a", "y_a", "b"}


def test_label_map_belongs_to_the_upright_image(
    folders: Callable[..., Path], pack: Pack, unpacked: Unpacked, tmp_path: Path, noise: Noise
) -> None:
    data = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees: 40 x 60 stored, 60 x 40 upright
    Image.fromarray(noise(3)).save(data, "JPEG", exif=exif)
    root = folders({"turned": png(HALVES.T)}, {"turned.jpg": data.getvalue()})
    pack(source(root), tmp_path / "out")
    files = unpacked(tmp_path / "out")
    image = Image.open(io.BytesIO(files["turned.jpg"]))
    assert (image.size, 0x0112 in image.getexif()) == ((40, 60), False)
    assert labels_in(files)["turned"] == HALVES.T.tolist()


def test_shrunk_label_map_keeps_class_numbers(
    folders: Callable[..., Path], pack: Pack, unpacked: Unpacked, tmp_path: Path
) -> None:
    pack(source(folders({"a": png(HALVES)}), long_side=30), tmp_path / "out")
    assert labels_in(unpacked(tmp_path / "out"))["a"] == HALVES[::2, ::2].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--images, --labels and --classes, or --source and --split"),
        (["--source", "a"], "--split is missing"),
        (["--source", "a", "--split", "training", "--classes", "b"], "--classes has no effect"),
        (["--images", "{0}/images", "--labels", "{0}/labels"], "--classes is missing"),
        (["--images", "{0}/images", "--labels", "{0}/no", "--classes", "{0}/c.txt"], "no such"),
        (
            ["--images", "{0}/images", "--labels", "{0}/images", "--classes", "{0}/c.txt"],
            "is the folder of --images",
        ),
        (
            ["--images", "{0}/images", "--labels", "{0}/labels", "--classes", "{0}/many.txt"],
            "256 classes, and a label map holds at most 255",
        ),
    ],
)
def test_mistakes_of_the_command_are_one_line(
    options: list[str],
    message: str,
    folders: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = folders({"a": png(HALVES)})
    (root / "c.txt").write_text("sky\nroad\ncar\n")
    (root / "many.txt").write_text("\n".join(map(str, range(256))))
    given = [option.format(root) for option in options]
    assert cli.main(["pack", "ade20k", *given, "--out", str(root / "out")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_packing_of_nothing_is_mended_in_the_same_folder(
    folders: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = folders({"a": png(np.full((40, 60), 7, np.uint8))})
    (root / "c.txt").write_text("sky\nroad\n")
    pair = [f"--images={root}/images", f"--labels={root}/labels", f"--classes={root}/c.txt"]
    command = ["pack", "ade20k", *pair, f"--out={root}/out", "--workers=0"]
    assert cli.main(command) == 2
    assert "unknown class: value 7" in capsys.readouterr().err
    assert cli.main([*command, "--ignored=7"]) == 0
    assert cli.main([*command, "--ignored=8"]) == 2
    assert "holds shards of another packing" in capsys.readouterr().err


def test_class_list_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    listed = tmp_path / "c.txt"
    listed.write_text("sky\nroad\nsky\n")
    with pytest.raises(UserError, match=r"c\.txt: sky stands in lines 1 and 3"):
        read_label_classes(str(listed))
    listed.write_text("sky\nroad\n")
    with pytest.raises(UserError, match="--ignored 1: it is the value of class road"):
        read_label_classes(str(listed), ignored=[1])
    assert read_label_classes(str(listed), first=254).numbers(
        np.array([[254, 255]], np.uint16)
    ).tolist() == [[0, 1]]


def test_shards_with_a_map_of_another_size_are_found(
    folders: Callable[..., Path], tmp_path: Path, pack: Pack, tar_of: Callable[..., Path]
) -> None:
    root = folders({"a": png(HALVES)})
    jpeg = (root / "images/a.jpg").read_bytes()
    shard = tar_of(tmp_path / "x.tar", {"a.jpg": jpeg, "a.label.png": png(HALVES[1:])})
    report = tmp_path / "report.json"
    assert cli.main(["check-shards", str(shard), "--json", str(report), "--workers", "0"]) == 1
    [bad] = json.loads(report.read_text())["bad"]
    assert bad["kind"] == "size mismatch"
