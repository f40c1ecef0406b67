"""Inventory of a source: files that packing leaves out, by suffix, type or place."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from efficientsam_pl.data.packing.imagenet import Imagenet, read_source
from efficientsam_pl.data.packing.inventory import Inventory, archive_stem, file_kind
from efficientsam_pl.data.packing.report import pack_source
from efficientsam_pl.data.packing.runner import ArrayShare
from efficientsam_pl.data.packing.sa1b import Sa1b
from efficientsam_pl.data.packing.writer import PackSummary
from efficientsam_pl.data.shards import open_shards

Pack = Callable[..., PackSummary]
Unpacked = Callable[[Path], dict[str, bytes]]


def encoded(seed: int, form: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, form)
    return data.getvalue()


def write(path: Path, content: bytes | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(len(path.name)) if content is None else content)


def tar(path: Path, members: dict[str, bytes | None], links: dict[str, tuple[bytes, str]]) -> Path:
    """A tar of files, folders (content None) and links by their type and target."""
    with tarfile.open(path, "w", encoding="utf-8") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            info.size = len(content or b"")
            file.addfile(info, io.BytesIO(content or b""))
        for name, (kind, target) in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            file.addfile(info)
    return path


def last_line(source: Any, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    pack_source(source, str(out), ArrayShare(), 0)
    return capsys.readouterr().out.splitlines()[-1]


def test_a_pack_ends_with_what_is_left_out_and_the_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train/a.jpg", "val/b.webp", "test/c.PNG", "test/.thumbnails/c.png"):
        form = {".webp": "WEBP", ".PNG": "PNG", ".png": "PNG"}.get(Path(name).suffix, "JPEG")
        write(tmp_path / "set" / name, encoded(len(name), form))
    for name in ("a.heic", "val/b.HEIC", "notes", "n2.tar.gz", "._a.jpg"):
        write(tmp_path / "set" / name, b"no image")
    (tmp_path / "set/val/gone.jpg").symlink_to("nowhere")
    (tmp_path / "set/val/loop").symlink_to(tmp_path / "set")
    line = last_line(Imagenet(str(tmp_path / "set"), None, 5), tmp_path / "out", capsys)
    assert line.startswith("3 images, 0 masks, 0 skipped -> 1 shard of ")
    assert line.endswith(
        "; left out: 2 .heic, 1 broken link, 1 file without a suffix, 1 hidden folder, "
        "1 metadata file of macOS, 1 nested archive, 1 repeated folder; "
        "3 classes: test, train, val"
    ), line
    summary = json.loads((tmp_path / "out/pack-summary.json").read_text())
    assert summary["left_out"][".heic"] == {"count": 2, "names": ["a.heic", "val/b.HEIC"]}
    assert summary["classes"] == ["test", "train", "val"]


def test_a_clean_set_without_classes_has_nothing_to_add(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "set/a.jpg")
    line = last_line(Imagenet(str(tmp_path / "set"), None, 5), tmp_path / "out", capsys)
    assert line.endswith(f" MiB in {tmp_path}/out")


def test_many_classes_are_counted_and_the_first_three_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        write(tmp_path / f"set/n{number}/image{number}.jpg")
    write(tmp_path / "set/loose.jpg")
    (tmp_path / "set/n9").mkdir()
    line = last_line(Imagenet(str(tmp_path / "set"), None, 5), tmp_path / "out", capsys)
    assert line.endswith(
        "; 6 classes: n0, n1, n2, ... (1 without an image: n9), 1 image without a class"
    )


def test_links_archives_and_special_files_of_a_tar_are_counted(tmp_path: Path) -> None:
    inner = tar(
        tmp_path / "n1.tar",
        {"n1_0.JPEG": encoded(1), "n1_1.webp": encoded(2, "WEBP"), "deep.tar": b"x" * 600},
        {"n1_2.JPEG": (tarfile.LNKTYPE, "n1_0.JPEG")},
    ).read_bytes()
    source = tar(
        tmp_path / "train.tar",
        {"n1.tar": inner, "n2.tar.gz": b"gzip", "n3.tar": inner, "._n3.tar": b"a Mac's"},
        {"link.jpg": (tarfile.SYMTYPE, "n1.tar"), "pipe": (tarfile.FIFOTYPE, "")},
    )
    items, inventory = read_source(str(source))
    assert inventory.left_out() == (
        "left out: 3 nested archives, 2 hard links, 1 metadata file of macOS, 1 special file, "
        "1 symbolic link"
    )
    assert inventory.names["nested archive"] == ["n2.tar.gz", "n1/deep.tar", "n3/deep.tar"]
    # the classes keep the numbers that they have once everything is unpacked
    assert (inventory.classes, inventory.empty) == (("n1", "n2", "n3"), ["n2"])
    assert {item.label for item in items} == {0, 2}


def test_a_name_that_is_twice_in_a_tar_is_named_and_the_later_file_packed(
    tmp_path: Path, pack: Pack, unpacked: Unpacked
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for seed in (1, 2):
            info = tarfile.TarInfo("x.jpg")
            info.size = len(encoded(seed))
            file.addfile(info, io.BytesIO(encoded(seed)))
    source = Imagenet(str(tmp_path / "a.tar"), None, 5)
    assert source.inventory().left_out() == "left out: 1 repeated name"
    pack(source, tmp_path / "out")
    assert unpacked(tmp_path / "out") == {"x.jpg": encoded(2)}


def test_links_that_loop_give_each_image_once(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        for number in range(2):
            write(tmp_path / "set" / name / f"{name}{number}.jpg")
    for name in ("a", "b", "c"):
        for other in {"a", "b", "c"} - {name}:
            (tmp_path / "set" / name / f"to_{other}").symlink_to(tmp_path / "set" / other)
    items, inventory = read_source(str(tmp_path / "set"))
    labels = {f"{name}{i}": number for number, name in enumerate("abc") for i in range(2)}
    assert {item.key: item.label for item in items} == labels
    assert inventory.left_out() == "left out: 6 repeated folders"


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
def test_names_that_are_not_utf8_get_keys_of_plain_text(
    packed: bool, tmp_path: Path, pack: Pack, unpacked: Unpacked
) -> None:
    images = {b"caf\xe9/\xff.jpg": 1, b"caf\xe9/caf\xc3\xa9.jpg": 2, b"b/c.jpg": 3}
    for name, seed in images.items():
        write(tmp_path / "set" / os.fsdecode(name), encoded(seed))
    write(tmp_path / "set" / os.fsdecode(b"\xfe.heic"), b"")
    source = tmp_path / "set"
    if packed:
        source = tmp_path / "set.tar"
        with tarfile.open(source, "w", format=tarfile.GNU_FORMAT) as file:
            file.add(tmp_path / "set", "set")
    images_of = Imagenet(str(source), None, 5)
    pack(images_of, tmp_path / "out")
    files = unpacked(tmp_path / "out")
    assert {n: c for n, c in files.items() if n.endswith(".jpg")} == {
        "%FF.jpg": encoded(1),
        "café.jpg": encoded(2),
        "c.jpg": encoded(3),
    }
    assert (files["%FF.cls"], files["c.cls"]) == (b"1", b"0")
    assert len(open_shards(f"{tmp_path}/out/*.tar")) == 3
    inventory = images_of.inventory()
    assert "2 classes: b, caf%E9" in inventory.closing()
    assert json.dumps(inventory.summary()).isascii()
    assert inventory.left_out(named=True) == (
        f"left out: 1 .heic ({'set/' if packed else ''}%FE.heic)"
    )


def test_hidden_folders_of_a_store_are_left_out(tmp_path: Path) -> None:
    for name in ("n1/a.jpg", "n2/.thumbnails/a.jpg", "n2/@eaDir/x/b.jpg", "n3/b.jpg"):
        write(tmp_path / "set" / name)
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "set"), "/hidden/set", recursive=True)
    items, inventory = read_source("memory://hidden/set")
    store.rm("/hidden", recursive=True)
    assert {item.key: item.label for item in items} == {"a": 0, "b": 2}
    assert inventory.names == {"hidden folder": ["n2/.thumbnails/", "n2/@eaDir/"]}


def test_a_source_without_an_image_says_what_it_holds(tmp_path: Path) -> None:
    write(tmp_path / "set/n1.tar", b"")
    with pytest.raises(ValueError, match=r"no image in .*; left out: 1 nested archive \(n1\.tar\)"):
        Imagenet(str(tmp_path / "set"), None, 5)


def test_rare_kinds_are_summed_up() -> None:
    inventory = Inventory()
    for number in range(30):
        inventory.leave_out(f".{number:02d}", f"x.{number:02d}")
    inventory.leave_out(".29", "y.29")
    line = inventory.left_out(named=True)
    assert line is not None
    assert line.startswith("left out: 2 .29 (x.29, y.29), 1 .00 (x.00), ")
    assert line.endswith(", 22 files of 22 other kinds")


@pytest.mark.parametrize(
    ("name", "kind", "stem"),
    [
        ("a/n2.tar.gz", "nested archive", "a/n2"),
        ("n2.TGZ", "nested archive", "n2"),
        ("a.b/x.tar", "nested archive", "a.b/x"),
        ("a.b/notes", "file without a suffix", "a.b/notes"),
        ("x.HEIC", ".heic", "x.HEIC"),
    ],
)
def test_kinds_of_files(name: str, kind: str, stem: str) -> None:
    assert (file_kind(name), archive_stem(name)) == (kind, stem)


def test_sa1b_tars_with_other_files_are_packed_and_these_counted(
    tmp_path: Path, good_sample: dict[str, bytes], pack: Pack, unpacked: Unpacked
) -> None:
    image, record = good_sample["jpg"], good_sample["json"]
    webp = io.BytesIO()
    Image.open(io.BytesIO(image)).save(webp, "WEBP", lossless=True)
    members = {
        "sa_1.jpg": image, "sa_1.json": record, "sa_1.png": b"second", "sa_1.txt": b"words",
        "sa_2.webp": webp.getvalue(), "sa_2.json": record, "sa_2.mask.png": b"x",
        ".thumbnails/sa_1.jpg": image, "._sa_1.jpg": b"a Mac's", "x.tar.gz": b"",
    }  # fmt: skip
    tar(tmp_path / "sa_000000.tar", members, {"sa_3.jpg": (tarfile.LNKTYPE, "sa_1.jpg")})
    source = Sa1b(f"{tmp_path}/sa_*.tar", None, 5)
    summary = pack(source, tmp_path / "out")
    files = unpacked(tmp_path / "out")
    assert set(files) == {"sa_1.jpg", "sa_1.json", "sa_2.jpg", "sa_2.json"}
    assert (files["sa_1.jpg"], files["sa_1.json"]) == (image, record)
    assert [skipped.what for skipped in summary.skipped] == ["x"]
    assert source.inventory().names == {
        ".txt": ["sa_1.txt"],
        "file with several dots in its name": ["sa_2.mask.png", "x.tar.gz"],
        "hard link": ["sa_3.jpg"],
        "hidden folder": [".thumbnails/"],
        "metadata file of macOS": ["._sa_1.jpg"],
        "second image": ["sa_1.png"],
    }
