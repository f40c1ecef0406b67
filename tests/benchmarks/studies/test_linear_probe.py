"""The linear probe on features whose answer is known, and crops cut by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.studies.coco_folders import LabelledBox, labelled_images, pack
from benchmarks.studies.linear_probe import (
    Crops,
    encoder_features,
    load_encoder,
    object_crops,
    probe,
    raw_pixels,
    square_around,
    untrained,
)
from efficientsam_pl.config.load import as_dict
from efficientsam_pl.data.transforms import Crop
from efficientsam_pl.export.consolidate import write_safetensors
from efficientsam_pl.models.config import EncoderConfig

SHAPE = EncoderConfig(width=24, depth=1, heads=3, image_size=32, position_grid=2)


def test_square_is_a_fifth_larger_than_the_longer_side_and_stays_in_the_image() -> None:
    # 50 x 1.2 = 60 around the middle (125, 75)
    assert square_around((100, 60, 50, 30), (200, 300)) == Crop(45, 95, 60, 60, flip=False)
    # at the corner it is moved in
    assert square_around((280, 180, 20, 20), (200, 300)) == Crop(176, 276, 24, 24, flip=False)
    # wider than the photo is high: its height, around the middle (150, 100)
    assert square_around((50, 90, 200, 20), (200, 300)) == Crop(0, 50, 200, 200, flip=False)


@pytest.fixture
def folders(tmp_path: Path) -> list[tuple[Path, Path]]:
    """Two sets that share photo 2; photo 9 is annotated but not there."""
    sets = []
    for name, ids in (("first", (1, 2)), ("second", (2, 3, 9))):
        folder = tmp_path / name
        folder.mkdir()
        boxes = [(10, "cat", 0), (11, "cat", 1), (12, "dog", 0)]
        content = {
            "images": [{"id": i, "file_name": f"{name}{i}.png"} for i in ids],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
            "annotations": [
                {
                    "image_id": i,
                    "category_id": 1 if category == "cat" else 2,
                    "bbox": [x, 5, 40, 36],
                    "iscrowd": crowd,
                }
                for i in ids
                for x, category, crowd in boxes
            ],
        }
        for i in ids:
            if i != 9:
                pixels = np.full((100, 120, 3), 20 * i, np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}{i}.png")
        (folder / "instances.json").write_text(json.dumps(content))
        sets.append((folder / "instances.json", folder))
    return sets


def test_a_image_of_two_sets_is_taken_once_and_crowds_are_left_out(
    folders: list[tuple[Path, Path]],
) -> None:
    photos = labelled_images(folders)
    assert [path.name for path, _ in photos] == ["first1.png", "first2.png", "second3.png"]
    for _, boxes in photos:
        assert boxes == (
            LabelledBox("cat", (10, 5, 40, 36)),
            LabelledBox("dog", (12, 5, 40, 36)),
        )


def test_rare_categories_and_small_boxes_are_left_out(tmp_path: Path) -> None:
    photos = []
    for i in range(8):
        path = tmp_path / f"{i}.png"
        Image.fromarray(np.full((100, 100, 3), 30 * i, np.uint8)).save(path)
        boxes = [LabelledBox("common", (n, 0, 40 + n, 40)) for n in range(5)]
        boxes.append(LabelledBox("small", (0, 0, 90, 31)))
        if i < 5:
            boxes.append(LabelledBox("rare", (0, 0, 50, 50)))
        if i < 6:
            boxes.append(LabelledBox("enough", (0, 0, 50, 50)))
        photos.append((path, tuple(boxes)))
    crops = object_crops(photos, 16)
    assert crops.names == ("common", "enough")
    assert np.bincount(crops.labels).tolist() == [3 * 8, 6]  # at most three a photo
    assert crops.images.shape == (30, 3, 16, 16)
    values = crops.images[:, 0, 0, 0].numpy()
    np.testing.assert_array_equal(values, 30 * crops.files)


def crops_of(labels: np.ndarray, photos: np.ndarray) -> Crops:
    images = torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8)
    return Crops(images, labels, photos, ("a", "b"))


def test_features_that_tell_the_label_score_one() -> None:
    photos = np.repeat(np.arange(30), 4)
    labels = np.tile([0, 1, 1, 1], 30)
    noise = np.random.default_rng(0).normal(size=(120, 4))
    features = noise + 9 * labels[:, None]
    score = probe(features, crops_of(labels, photos), seed=0)
    assert (score.balanced, score.top1) == (1, 1)


def test_features_that_tell_the_image_alone_score_chance() -> None:
    """A classifier that had seen other crops of a photo would be right about all of them."""
    photos = np.repeat(np.arange(40), 4)
    labels = np.repeat(np.random.default_rng(0).integers(0, 2, 40), 4)
    score = probe(np.eye(40)[photos], crops_of(labels, photos), seed=0)
    assert score.balanced < 0.65


def test_raw_pixels_are_means_of_the_crops_squares() -> None:
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[0, 0, :2, :2] = torch.tensor([[1, 2], [3, 6]])
    pixels = raw_pixels(image)
    assert pixels.shape == (1, 3 * 16 * 16)
    assert pixels[0, 0] == 3
    assert (pixels[0, 1:] == 0).all()


def test_encoder_is_read_back_from_its_file(tmp_path: Path) -> None:
    trunk = untrained(SHAPE, seed=3)
    state = {f"image_encoder.trunk.{k}": v for k, v in trunk.state_dict().items()}
    write_safetensors(tmp_path / "encoder.safetensors", state, state.values(), as_dict(SHAPE), {})
    images = torch.randint(0, 256, (70, 3, 32, 32), dtype=torch.uint8)
    read = encoder_features(load_encoder(tmp_path / "encoder.safetensors"), images)
    assert read.shape == (70, 24)
    np.testing.assert_array_equal(read, encoder_features(trunk, images))
    # a batch of its own: nothing depends on its neighbours
    np.testing.assert_allclose(read[69:], encoder_features(trunk, images[69:]), atol=1e-5)
    other = encoder_features(untrained(SHAPE, seed=4), images)
    assert np.abs(read - other).max() > 0.01


def test_every_nth_image_is_held_out_whatever_the_order(tmp_path: Path) -> None:
    photos = []
    for i in range(7):
        path = tmp_path / f"{i}.jpg"
        Image.fromarray(np.full((40, 60, 3), 30 * i, np.uint8)).save(path)
        photos.append(path)
    packed = pack(photos, tmp_path / "one", heldout_every=3, long_side=30)
    assert (packed.train_images, packed.heldout_photos) == (4, 3)
    pack(photos[::-1], tmp_path / "two", heldout_every=3, long_side=30)
    one, two = ((tmp_path / name / "heldout.txt").read_text() for name in ("one", "two"))
    assert one == two
    assert len(list((tmp_path / "one/train").glob("*.tar"))) == 1
