"""Images with label maps: sizes, crops, colours, corrupt samples, batches."""

import colorsys
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from efficientsam_pl.data.datasets.semantic import (
    SEMANTIC_SUFFIXES,
    SemanticDataset,
    SemanticScoringView,
    SemanticTrainingView,
)
from efficientsam_pl.data.images.label_map import encode_label_map
from efficientsam_pl.data.limits import batches_in_flight
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.semantic_config import SemanticCropConfig
from efficientsam_pl.data.semantic_transforms import (
    ResizedCrop,
    crop_image,
    crop_labels,
    draw_crop,
    jitter_colour,
    resized_hw,
    scaled,
    shifted_hsv,
)
from efficientsam_pl.data.shards import ShardSet, open_shards
from efficientsam_pl.keyed_random import sample_key

Noise = Callable[..., np.ndarray]
SIDE = 32
STILL = SemanticCropConfig(brightness=0.0, contrast=0.0, saturation=0.0, hue=0)


def quadrants(height: int = 40, width: int = 60) -> np.ndarray:
    """Classes 0 and 1 above, 2 and ignored below."""
    labels = np.zeros((height, width), np.uint8)
    labels[:, width // 2 :] = 1
    labels[height // 2 :, : width // 2], labels[height // 2 :, width // 2 :] = 2, 255
    return labels


@pytest.fixture
def mapped(
    tmp_path: Path, tar_of: Callable[..., Path], jpeg_of: Callable[..., bytes], noise: Noise
) -> ShardSet:
    """Four good images, one of them wholly ignored, and one of each fault."""
    maps = {f"a{n}": quadrants() for n in range(3)} | {"a3": np.full((40, 60), 255, np.uint8)}
    maps |= {"b0": np.full((40, 60), 3, np.uint8), "b1": quadrants(41)}
    files: dict[str, bytes] = {"b2.jpg": jpeg_of(noise(8)), "b3.label.png": b"no map"}
    files["b3.jpg"] = jpeg_of(noise(9))
    for number, (key, labels) in enumerate(maps.items()):
        files |= {
            f"{key}.jpg": jpeg_of(noise(number)),
            f"{key}.label.png": encode_label_map(labels),
        }
    tar_of(tmp_path / "mapped.tar", dict(sorted(files.items())))
    return open_shards(str(tmp_path / "mapped.tar"))


def dataset(shards: ShardSet, view: Any) -> SemanticDataset:
    return SemanticDataset(SampleReader([shards], SEMANTIC_SUFFIXES), view, 3, 0)


def batch(data: SemanticDataset, epoch: int = 0, numbers: range = range(8)) -> Any:
    return data.collate(data.__getitems__([SampleRef(epoch, number) for number in numbers]))


def test_short_sides_are_those_of_the_reference_equally_often() -> None:
    config = SemanticCropConfig()
    sides = [config.short_side(tenths, 512) for tenths in config.short_tenths()]
    assert sides == [int(x * 0.1 * 512) for x in range(5, 21)]  # Mask2Former's config
    drawn = [min(resized_hw((500, 500), 512, config, sample_key(0, 0, str(n)))) for n in range(640)]
    assert set(drawn) == set(sides)
    assert max(drawn.count(side) for side in sides) < 2.2 * 640 / 16
    wide = {resized_hw((10, 100), 512, config, sample_key(0, 1, str(n))) for n in range(20)}
    assert max(max(hw) for hw in wide) == 2048


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("to_hw", [(23, 35), (80, 120)])
def test_crop_is_a_part_of_the_image_as_pillow_resizes_it(
    to_hw: tuple[int, int], flip: bool, noise: Noise
) -> None:
    pixels, labels = noise(3), quadrants()
    crop = ResizedCrop(to_hw, 4, 7, 16, 20, flip)
    part = np.s_[4:20, 7:27]
    for array, resample, cut in (
        (pixels, Image.Resampling.BILINEAR, crop_image),
        (labels, Image.Resampling.NEAREST, crop_labels),
    ):
        whole = np.asarray(Image.fromarray(array).resize(to_hw[::-1], resample))[part]
        expected = whole[:, ::-1] if flip else whole
        assert np.abs(cut(array, crop).astype(int) - expected).max() <= (array is pixels)


def test_crop_of_one_class_is_drawn_again() -> None:
    labels = np.zeros((64, 200), np.uint8)
    labels[:, 100:104] = 1  # a crop of 32 shows both classes at most at 1 of 5 places
    keys = [sample_key(0, 0, str(n)) for n in range(200)]

    def mixed(most: float) -> float:
        config = SemanticCropConfig(max_category=most)
        crops = [crop_labels(labels, draw_crop(labels, (64, 200), 32, config, k)) for k in keys]
        return sum(len(np.unique(crop)) > 1 for crop in crops) / len(crops)

    assert mixed(1.0) < 0.3
    assert mixed(0.9) > 0.8
    unlabelled = np.full((64, 200), 255, np.uint8)
    assert draw_crop(unlabelled, (64, 200), 32, SemanticCropConfig(), 5).height == 32


def test_hue_and_saturation_are_those_of_hsv() -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    for hue, saturation in ((0.0, 1.3), (0.0, 0.6), (0.1, 1.0), (-0.1, 0.8)):
        changed = shifted_hsv(image, saturation, hue).reshape(-1, 3)
        for pixel, new in zip(image.reshape(-1, 3), changed, strict=True):
            h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
            expected = colorsys.hsv_to_rgb((h + hue) % 1, min(1.0, s * saturation), v)
            # a 256th of the circle is 6 of 255, for the hue's rounding and for the turn's
            assert np.abs(new - 255 * np.array(expected)).max() <= 9
        assert np.array_equal(changed.max(1), image.reshape(-1, 3).max(1))  # the value stays


def test_contrast_and_brightness_are_clipped_and_truncated() -> None:
    image = np.array([[[0, 100, 255]]], np.uint8)
    assert scaled(image, 1.0, 31.9).tolist() == [[[31, 131, 255]]]
    assert scaled(image, 0.5, -10.0).tolist() == [[[0, 40, 117]]]
    assert scaled(image, 1.499).tolist() == [[[0, 149, 255]]]


def test_colours_change_about_as_often_as_each_step_says(noise: Noise) -> None:
    image, keys = noise(1), [sample_key(0, 0, str(n)) for n in range(100)]
    assert all(np.array_equal(jitter_colour(image, STILL, key), image) for key in keys)
    same = [np.array_equal(jitter_colour(image, SemanticCropConfig(), key), image) for key in keys]
    assert 0 < sum(same) < 16  # all four steps are off in a 16th


def test_training_crops_are_functions_of_epoch_and_sample(mapped: ShardSet) -> None:
    data = dataset(mapped, SemanticTrainingView(SIDE, SemanticCropConfig()))
    first, again, alone = batch(data), batch(data), batch(data, numbers=range(1, 3))
    assert torch.equal(first.image, again.image)
    assert torch.equal(alone.image, first.image[1:3])
    assert torch.equal(alone.labels, first.labels[1:3])
    assert not torch.equal(batch(data, epoch=1).image, first.image)


def test_small_images_are_padded_with_grey_and_ignored(mapped: ShardSet) -> None:
    half = SemanticCropConfig(min_scale=0.5, max_scale=0.5)
    seen = batch(dataset(mapped, SemanticTrainingView(SIDE, half)), numbers=range(1))
    assert seen.image.shape == (1, 3, SIDE, SIDE)
    assert (seen.image[:, :, 16:] == 128).all()  # 40 x 60 becomes 16 x 24
    assert (seen.image[:, :, :, 24:] == 128).all()
    assert (seen.labels[:, 16:] == 255).all()
    assert (seen.labels[:, :, 24:] == 255).all()
    assert (seen.image[:, :, :16, :24] != 128).any()


def test_corrupt_label_maps_are_counted_and_an_ignored_one_is_not(mapped: ShardSet) -> None:
    seen = batch(dataset(mapped, SemanticScoringView(SIDE)))
    assert seen.valid.tolist() == [True] * 4 + [False] * 4
    assert seen.present == ((0, 1, 2),) * 3 + ((),) * 5
    assert [(c.key, c.kind) for c in seen.corrupt] == [
        ("b0", "unknown class"),
        ("b1", "size mismatch"),
        ("b2", "missing label map"),
        ("b3", "bad label map"),
    ]
    assert (seen.labels[4:] == 255).all()


def test_padding_is_measured_before_a_run_begins(mapped: ShardSet) -> None:
    data = dataset(mapped, SemanticTrainingView(SIDE, SemanticCropConfig()))
    assert batches_in_flight(data, samples=4, count=2).bytes >= 4 * 4 * SIDE**2
    empty = data.collate(data.__getitems__([SampleRef(0, None)]))
    assert (empty.valid.tolist(), empty.labels.unique().tolist()) == ([False], [255])


def test_scoring_view_holds_the_whole_image(mapped: ShardSet, noise: Noise) -> None:
    seen = batch(dataset(mapped, SemanticScoringView(SIDE)), numbers=range(1))
    data = io.BytesIO()
    Image.fromarray(noise(0)).save(data, "JPEG", quality=95, subsampling=0)
    whole = Image.open(data).resize((32, 21), Image.Resampling.BILINEAR)  # of 60 x 40
    assert (
        np.abs(seen.image[0, :, :21].permute(1, 2, 0).numpy() - np.array(whole).astype(int)).max()
        <= 2
    )
    assert seen.labels[0, :21].unique().tolist() == [0, 1, 2, 255]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_scale": 3.0}, "min_scale=3.0 must lie in"),
        ({"min_scale": 0.51, "max_scale": 0.59}, "no multiple of a tenth"),
        ({"max_category": 1.5}, "max_category=1.5 must lie in"),
        ({"hue": 100}, "hue=100 must lie in"),
    ],
)
def test_a_config_that_contradicts_itself_names_the_key(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SemanticCropConfig(**changes)
