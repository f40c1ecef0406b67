import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from efficientsam_pl.data.decode import decode_photo
from efficientsam_pl.data.schema import annotation_of
from efficientsam_pl.data.shards import index_shards, read_files
from efficientsam_pl.data.streams import read_photo, read_record
from efficientsam_pl.data.writer import MaskedPhoto, ShardWriter, limit_side, pack
from efficientsam_pl.rle import decode, encode

HW = (40, 60)


def photo_of(key: str, noise: Callable[..., np.ndarray], *masks: np.ndarray) -> MaskedPhoto:
    return MaskedPhoto(key, noise(len(key)), tuple(annotation_of(encode(m)) for m in masks))


def half() -> np.ndarray:
    mask = np.zeros(HW, dtype=bool)
    mask[:, :30] = True
    return mask


def test_packed_photos_are_read_back(tmp_path: Path, noise: Callable[..., np.ndarray]) -> None:
    photos = [photo_of(f"p{i}", noise, *[half()] * i) for i in range(5)]
    summary = pack(photos, tmp_path / "out", "set")
    assert (summary.photos, summary.masks, summary.shards) == (5, 10, 1)
    [path] = (tmp_path / "out").iterdir()
    assert path.name == "set-000000.tar"
    assert summary.bytes == path.stat().st_size
    for photo, sample in zip(photos, index_shards(str(path)).samples(), strict=True):
        files = read_files(sample)
        image = read_photo(files)
        record = read_record(files, image)
        assert sample.key == photo.key
        assert record.annotations == photo.annotations
        assert np.abs(image.astype(int) - photo.image).mean() < 3  # JPEG
        assert json.loads(files["json"])["image"]["file_name"] == f"{photo.key}.jpg"


def test_shards_are_cut_after_so_many_samples(
    tmp_path: Path, noise: Callable[..., np.ndarray]
) -> None:
    with ShardWriter(tmp_path, "set", samples_per_shard=2) as writer:
        for i in range(5):
            writer.write(photo_of(f"p{i}", noise))
    assert index_shards(str(tmp_path / "*.tar")).sizes() == [2, 2, 1]
    assert writer.summary.shards == 3


def test_same_photos_make_the_same_bytes(tmp_path: Path, noise: Callable[..., np.ndarray]) -> None:
    for name in ("one", "two"):
        pack([photo_of("p", noise, half())], tmp_path / name, "set")
    assert (tmp_path / "one/set-000000.tar").read_bytes() == (
        tmp_path / "two/set-000000.tar"
    ).read_bytes()


def test_nothing_half_written_stays_under_the_final_name(
    tmp_path: Path, noise: Callable[..., np.ndarray]
) -> None:
    def until_the_source_breaks_off() -> None:
        with ShardWriter(tmp_path, "set", samples_per_shard=2) as writer:
            for i in range(3):
                assert not (tmp_path / f"set-{i // 2:06d}.tar").exists()
                writer.write(photo_of(f"p{i}", noise))
            raise RuntimeError("broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        until_the_source_breaks_off()
    assert [p.name for p in tmp_path.iterdir()] == ["set-000000.tar"]  # the whole one
    with tarfile.open(tmp_path / "set-000000.tar") as tar:
        assert len(tar.getnames()) == 4


def test_nothing_to_write_makes_no_shard(tmp_path: Path) -> None:
    assert pack([], tmp_path / "out", "set").shards == 0
    assert list((tmp_path / "out").iterdir()) == []


def test_limited_side_scales_masks_with_the_photo(noise: Callable[..., np.ndarray]) -> None:
    photo = photo_of("p", noise, half(), ~half())
    small = limit_side(photo, 30)
    assert small.image.shape == (20, 30, 3)
    left, right = (decode(a.rle) for a in small.annotations)
    assert left.shape == (20, 30)
    np.testing.assert_array_equal(np.nonzero(left.any(0))[0], np.arange(15))
    np.testing.assert_array_equal(left, ~right)
    assert [a.area for a in small.annotations] == [300, 300]


def test_limited_side_is_the_longest_and_leaves_smaller_photos_alone(
    noise: Callable[..., np.ndarray],
) -> None:
    photo = photo_of("p", noise, half())
    assert limit_side(photo, 60) is photo
    tall = MaskedPhoto("t", noise(1, 60, 40), ())
    assert limit_side(tall, 45).image.shape == (45, 30, 3)


def test_mask_that_vanishes_when_scaled_is_left_out(noise: Callable[..., np.ndarray]) -> None:
    dot = np.zeros(HW, dtype=bool)
    dot[3, 3] = True
    small = limit_side(photo_of("p", noise, dot, half(), np.zeros(HW, dtype=bool)), 15)
    assert len(small.annotations) == 1


def test_jpeg_is_written_without_colour_subsampling(tmp_path: Path) -> None:
    stripes = np.zeros((16, 16, 3), dtype=np.uint8)
    stripes[:, ::2, 0] = 255  # one pixel wide: subsampling would blur the colour
    pack([MaskedPhoto("s", stripes, ())], tmp_path, "set")
    [sample] = index_shards(str(tmp_path / "*.tar")).samples()
    read = decode_photo(read_files(sample)["jpg"]).astype(int)
    assert read[:, ::2, 0].mean() - read[:, 1::2, 0].mean() > 200
