"""Images with their annotations: read from any place, ahead of their use, corrupt ones reported."""

import hashlib
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientsam_pl.data.datasets.image_sources import (
    ImageFiles,
    LoadedImage,
    PackedImages,
    annotations_sha256,
    prefetch,
)
from efficientsam_pl.data.packing.images import MaskedImage, pack_images
from efficientsam_pl.data.schema import annotation_of
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.records import CorruptSample, Instance, InstanceImage
from efficientsam_pl.rle import encode


def annotate(number: int) -> InstanceImage:
    masks = np.zeros((2, 6, 8), dtype=bool)
    masks[0, :3, : 1 + number % 4], masks[1, 4:] = True, True
    made = [Instance(10 * number + i, 1, encode(m), float(m.sum())) for i, m in enumerate(masks)]
    return InstanceImage(number, f"{number}.png", (6, 8), tuple(made))


def test_results_come_in_order_and_no_more_wait_than_may() -> None:
    lock, begun = threading.Lock(), [0]

    def read(place: int) -> int:
        with lock:
            begun[0] += 1
        return place * place

    for used, value in enumerate(prefetch(read, range(40), threads=3, most=4)):
        assert value == used * used
        assert begun[0] <= used + 1 + 4
    assert begun[0] == 40


def test_reading_stops_where_nobody_wants_more() -> None:
    begun: list[int] = []
    results = prefetch(begun.append, range(1000), threads=1, most=2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(begun) <= 4


def test_a_fault_of_reading_is_raised() -> None:
    def read(place: int) -> int:
        raise RuntimeError(f"place {place}")

    with pytest.raises(RuntimeError, match="place 0"):
        list(prefetch(read, range(3), threads=2, most=2))


def test_content_is_one_for_any_order_and_path_and_another_for_any_change() -> None:
    images = [annotate(number) for number in range(5)]
    known = annotations_sha256(images)
    mixed = [
        replace(one, path=f"/elsewhere/{one.path}", instances=one.instances[::-1])
        for one in images[::-1]
    ]
    assert annotations_sha256(mixed) == known
    first = images[0].instances[0]
    for other in (
        replace(first, crowd=True),
        replace(first, area=1.5),
        replace(first, category_id=2),
        replace(first, mask=images[1].instances[0].mask),
    ):
        changed = replace(images[0], instances=(other, images[0].instances[1]))
        assert annotations_sha256([changed, *images[1:]]) != known
    assert annotations_sha256(images[1:]) != known
    assert annotations_sha256([replace(images[0], exhaustive=False), *images[1:]]) != known


def test_corrupt_files_are_reported_and_others_read(tmp_path: Path) -> None:
    images = [replace(annotate(number), path=f"{tmp_path}/{number}.png") for number in range(4)]
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    Image.fromarray(pixels[:5]).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(b"no photo")
    set_ = ImageFiles(images, range(4), [one.path for one in images], ())
    whole = set_.read(0)
    assert isinstance(whole, LoadedImage)
    np.testing.assert_array_equal(whole.image, pixels)
    assert (whole.number, whole.about) == (0, images[0])
    expected = hashlib.sha256((tmp_path / "0.png").read_bytes()).hexdigest()[:16]
    assert (whole.sha256, set_.fingerprint(0)) == (expected, ("0.png", expected))
    assert set_.fingerprint(3) == ("3.png", "")
    for place, kind in ((1, "size mismatch"), (2, "bad photo"), (3, "missing photo")):
        corrupt = set_.read(place)
        assert isinstance(corrupt, CorruptSample)
        assert (corrupt.kind, corrupt.key, corrupt.shard) == (kind, str(place), f"{place}.png")


def test_packed_images_have_the_same_annotations_with_and_without_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    images = [
        MaskedImage(f"p{n}", pixels, tuple(annotation_of(i.mask) for i in annotate(n).instances))
        for n in range(5)
    ]
    pack_images(images, tmp_path, "set", samples_per_shard=2)
    set_ = PackedImages(open_shards(f"{tmp_path}/*.tar"))
    assert list(set_.numbers) == list(range(5))
    ids = set()
    for read in prefetch(set_.read, set_.numbers, threads=3, most=3):
        assert isinstance(read, LoadedImage)
        assert set_.annotations(read.number) == read.about
        expected = annotate(read.number).instances
        assert [one.mask for one in read.about.instances] == [one.mask for one in expected]
        assert [one.area for one in read.about.instances] == [one.area for one in expected]
        assert [one.id for one in read.about.instances] == [0, 1]
        ids.add(read.about.id)
        assert set_.fingerprint(read.number).sha256 == read.sha256
    assert len(ids) == 5


def pack_squares(folder: Path, colour: int, side: int = 3) -> PackedImages:
    masks = np.zeros((1, 6, 8), dtype=bool)
    masks[0, :side, :side] = True
    pixels = np.full((6, 8, 3), colour, dtype=np.uint8)
    annotations = tuple(annotation_of(encode(mask)) for mask in masks)
    pack_images([MaskedImage(f"p{n}", pixels, annotations) for n in range(3)], folder, "set", 3)
    return PackedImages(open_shards(f"{folder}/*.tar"))


@pytest.mark.parametrize(("colour", "side"), [(250, 3), (10, 4)], ids=["pixels", "masks"])
def test_shard_that_is_replaced_below_its_old_index_has_other_fingerprints(
    tmp_path: Path, colour: int, side: int
) -> None:
    set_ = pack_squares(tmp_path / "a", 10)
    before = [set_.fingerprint(place) for place in set_.numbers]
    assert [one.name for one in before] == [f"set-000000.tar p{n}" for n in range(3)]
    pack_squares(tmp_path / "b", colour, side)
    [old], [new] = ((tmp_path / name).glob("*.tar") for name in "ab")
    assert old.stat().st_size == new.stat().st_size
    old.write_bytes(new.read_bytes())
    stale = PackedImages(open_shards(f"{tmp_path}/a/*.tar"))
    for one, place in zip(before, stale.numbers, strict=True):
        assert stale.fingerprint(place) != one
