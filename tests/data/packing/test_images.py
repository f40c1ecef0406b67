import json
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from efficientsam_pl.data.images.decode import decode_image
from efficientsam_pl.data.packing.images import (
    MaskedImage,
    limit_side,
    limited_size,
    pack_images,
    packed_sample,
)
from efficientsam_pl.data.schema import Annotation, annotation_of, from_json
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.rle import decode, encode

HW = (40, 60)
Noise = Callable[..., np.ndarray]


def image_of(key: str, noise: Noise, *masks: np.ndarray) -> MaskedImage:
    return MaskedImage(key, noise(len(key)), tuple(annotation_of(encode(m)) for m in masks))


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(HW, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def weights(pixels: int, cells: int) -> list[list[Fraction]]:
    """Compute each pixel's exact share of each cell along an axis."""
    width = Fraction(pixels, cells)
    return [
        [
            max(Fraction(0), min((cell + 1) * width, Fraction(p + 1)) - max(cell * width, p))
            / width
            for p in range(pixels)
        ]
        for cell in range(cells)
    ]


def slowly_shrunk(mask: np.ndarray, to_hw: tuple[int, int]) -> np.ndarray:
    """Cells covered by half, or the best-covered ones of a mask too thin for that."""
    down, across = weights(mask.shape[0], to_hw[0]), weights(mask.shape[1], to_hw[1])
    covered = np.full(to_hw, Fraction(0))
    for y, x in zip(*np.nonzero(mask), strict=True):
        for row, column in product(range(to_hw[0]), range(to_hw[1])):
            if down[row][y] and across[column][x]:
                covered[row, column] += down[row][y] * across[column][x]
    return np.asarray(covered >= min(Fraction(1, 2), covered.max()), dtype=bool)


def disc(y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: HW[0], : HW[1]]
    return np.hypot(rows - y, columns - x) < radius


@pytest.mark.parametrize("longest", [24, 7, 1])
@pytest.mark.parametrize(
    "mask",
    [
        box(0, 0, 40, 60),
        box(0, 0, 40, 31),
        box(39, 59, 40, 60),
        box(0, 0, 1, 1),
        box(17, 3, 18, 57),
        box(0, 22, 40, 23),
        ~box(1, 1, 39, 59),
        disc(20, 30, 11.3),
        disc(0, 60, 14),
        disc(12, 12, 5) | disc(30, 45, 6),
    ],
    ids=["whole", "left", "corner", "dot", "row", "column", "border", "disc", "quarter", "two"],
)
def test_shrunk_mask_is_the_exact_area_average(
    mask: np.ndarray, longest: int, noise: Noise
) -> None:
    [small] = limit_side(image_of("p", noise, mask), longest).annotations
    to_hw = limited_size(HW, longest)
    expected = slowly_shrunk(mask, to_hw)
    np.testing.assert_array_equal(decode(small.rle), expected)
    assert small.area == expected.sum() == coco_mask.area(small.rle)


def test_random_masks_are_exact_area_averages(noise: Noise) -> None:
    draw = np.random.default_rng(3)
    masks = [draw.random(HW) < fraction for fraction in (0.02, 0.4, 0.6)]
    small = limit_side(image_of("p", noise, *masks), 17)
    for mask, annotation in zip(masks, small.annotations, strict=True):
        np.testing.assert_array_equal(decode(annotation.rle), slowly_shrunk(mask, (11, 17)))


@pytest.mark.parametrize(
    ("hw", "longest", "expected"),
    [
        ((1500, 2250), 1024, (683, 1024)),
        ((2250, 1500), 1024, (1024, 683)),
        ((1024, 1024), 1024, (1024, 1024)),
        ((10, 20), 1024, (10, 20)),
        ((1, 5000), 100, (1, 100)),
    ],
)
def test_longer_side_is_limited_and_the_form_kept(
    hw: tuple[int, int], longest: int, expected: tuple[int, int]
) -> None:
    assert limited_size(hw, longest) == expected


def test_image_is_resized_as_by_pillow(noise: Noise) -> None:
    small = limit_side(image_of("p", noise), 33)
    reference = Image.fromarray(noise(1)).resize((33, 22), Image.Resampling.BICUBIC)
    difference = np.abs(small.image.astype(int) - np.array(reference))
    assert difference.max() <= 2
    assert difference.mean() < 0.3


def test_smaller_image_is_left_alone(noise: Noise) -> None:
    image = image_of("p", noise, box(0, 0, 40, 30))
    assert limit_side(image, 60) is image


def test_what_is_known_of_a_mask_is_kept(noise: Noise) -> None:
    whole = Annotation(encode(box(5, 5, 30, 50)), 1125, True, 0.93, 0.97)
    [small] = limit_side(MaskedImage("p", noise(0), (whole,)), 30).annotations
    assert (small.crowd, small.predicted_iou, small.stability) == (True, 0.93, 0.97)


def test_empty_masks_are_left_out_and_a_dot_stays(noise: Noise) -> None:
    dot, nothing = box(3, 3, 4, 4), np.zeros(HW, dtype=bool)
    small = limit_side(image_of("p", noise, dot, nothing), 15)
    assert [a.area for a in small.annotations] == [1]


def test_original_size_is_that_before_the_first_shrinking(noise: Noise) -> None:
    once = limit_side(image_of("p", noise, box(0, 0, 40, 30)), 30)
    twice = limit_side(once, 15)
    assert (once.original_hw, twice.original_hw) == (HW, HW)
    record = from_json(packed_sample(twice).files["json"])
    assert (record.height, record.width, record.original_hw) == (10, 15, HW)


def test_written_boxes_and_areas_are_pycocotools(noise: Noise) -> None:
    masks = [box(0, 0, 40, 60), box(7, 9, 8, 10), disc(20, 30, 9)]
    image = limit_side(image_of("p", noise, *masks), 30)
    written = json.loads(packed_sample(image).files["json"])["annotations"]
    for annotation in written:
        x, y, w, h = coco_mask.toBbox(annotation["segmentation"])
        assert annotation["bbox"] == [x, y, w - 1, h - 1]  # SA-1B's: xmax - xmin
        assert annotation["area"] == coco_mask.area(annotation["segmentation"])


def test_packed_images_are_read_back(tmp_path: Path, noise: Noise) -> None:
    images = [image_of(f"p{i}", noise, *[box(0, 0, 40, 30)] * i) for i in range(5)]
    summary = pack_images(images, tmp_path / "out", "set", samples_per_shard=2)
    names = [f"set-00000{i}.tar" for i in range(3)]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.tar")) == names
    assert (summary.samples, summary.masks, len(summary.shards)) == (5, 10, 3)
    assert summary.bytes == sum(p.stat().st_size for p in (tmp_path / "out").glob("*.tar"))
    shards = open_shards(str(tmp_path / "out/*.tar"))
    assert shards.sizes() == [2, 2, 1]
    for image, sample in zip(images, shards.samples(), strict=True):
        files = {e: read(r.path, r.offset, r.size) for e, r in sample.files.items()}
        assert sample.key == image.key
        assert from_json(files["json"]).annotations == image.annotations
        assert np.abs(decode_image(files["jpg"]).astype(int) - image.image).mean() < 3  # JPEG


def read(path: str, offset: int, size: int) -> bytes:
    return Path(path).read_bytes()[offset : offset + size]


def test_relative_folder_has_a_manifest_that_is_right(
    tmp_path: Path, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pack_images([image_of("p", noise)], Path("out"), "set")
    monkeypatch.chdir("/")
    [sample] = open_shards(str(tmp_path / "out/*.tar")).samples()
    assert sample.key == "p"


def test_nothing_to_write_makes_no_shard(tmp_path: Path) -> None:
    assert pack_images([], tmp_path, "set").shards == []
    assert list(tmp_path.iterdir()) == []


def test_jpeg_is_written_without_colour_subsampling() -> None:
    stripes = np.zeros((16, 16, 3), dtype=np.uint8)
    stripes[:, ::2, 0] = 255  # one pixel wide: subsampling would blur the colour
    read_back = decode_image(packed_sample(MaskedImage("s", stripes, ())).files["jpg"]).astype(int)
    assert read_back[:, ::2, 0].mean() - read_back[:, 1::2, 0].mean() > 200
