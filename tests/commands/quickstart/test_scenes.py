"""The generated world: exact masks, two splits that share nothing, and its difficulty."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import skimage
from jaxtyping import Bool
from PIL import Image, ImageDraw
from skimage.morphology import convex_hull_image

from efficientsam_pl.commands.quickstart.scenes import (
    HELDOUT_TEXTURES,
    TRAIN_TEXTURES,
    Scene,
    World,
    draw_scene,
    open_world,
    scene_images,
)
from efficientsam_pl.commands.quickstart.shapes import (
    Family,
    Loop,
    heldout_families,
    rotate,
    train_families,
)
from efficientsam_pl.commands.quickstart.sources import REAL_IMAGES
from efficientsam_pl.evaluation.metrics.mean_iou import filled_box_iou
from efficientsam_pl.rle import decode

FOLDER = Path(skimage.__file__).parent / "data"
SPLITS = ("train", "heldout")


def world(split: str, side: int = 224) -> World:
    return open_world(split, FOLDER, side, smallest_mask=0.01)


def scenes(split: str, count: int) -> list[Scene]:
    split_world = world(split)
    return [draw_scene(split_world, np.random.default_rng([7, number])) for number in range(count)]


def drawn(loops: list[Loop], side: int = 200) -> Bool[np.ndarray, "h w"]:
    covered = np.zeros((side, side), bool)
    for loop in loops:
        stencil = Image.new("1", (side, side))
        points = [tuple(point) for point in ((loop + 1) * side / 2).tolist()]
        ImageDraw.Draw(stencil).polygon(points, fill=1)
        covered ^= np.array(stencil)
    return covered


def test_splits_share_no_image_and_no_family() -> None:
    assert not set(TRAIN_TEXTURES) & set(HELDOUT_TEXTURES)
    assert not set(train_families()) & set(heldout_families())
    assert set(REAL_IMAGES) <= set(HELDOUT_TEXTURES)
    # one scene seen by two cameras lies on one side
    assert {"motorcycle_left.png", "motorcycle_right.png"} <= set(TRAIN_TEXTURES)


@pytest.mark.parametrize("families", [train_families(), heldout_families()])
def test_outlines_lie_in_the_unit_circle_and_fill_some_of_it(
    families: Mapping[str, Family],
) -> None:
    for name, family in families.items():
        for seed in range(8):
            loops = rotate(family(np.random.default_rng(seed)), np.random.default_rng(seed))
            reach = max(float(np.linalg.norm(loop, axis=1).max()) for loop in loops)
            assert 0.5 < reach < 1.25, name
            assert drawn(loops).mean() > 0.05, name


def test_a_ring_has_a_hole() -> None:
    covered = drawn(train_families()["ring"](np.random.default_rng(0)))
    assert not covered[100, 100]
    assert covered[100, 190]


def test_masks_of_a_scene_are_apart_and_large_enough() -> None:
    for scene in scenes("train", 12):
        total = np.sum(list(scene.masks), axis=0)
        assert total.max() <= 1, "a pixel belongs to the object in front"
        assert all(mask.mean() >= 0.01 for mask in scene.masks)


def test_front_objects_hide_those_behind() -> None:
    occluded = [hidden for scene in scenes("heldout", 30) for hidden in scene.occluded]
    assert any(occluded)
    assert not all(occluded)


def test_a_scene_depends_on_seed_split_and_number_alone() -> None:
    straight = list(scene_images(world("train", 96), 3, seed=5))
    again = list(scene_images(world("train", 96), 3, seed=5))
    for one, other in zip(straight, again, strict=True):
        assert np.array_equal(one.image, other.image)
        assert one.annotations == other.annotations
    longer = list(scene_images(world("train", 96), 4, seed=5))
    assert np.array_equal(longer[2].image, straight[2].image)
    [other_seed] = scene_images(world("train", 96), 1, seed=6)
    assert not np.array_equal(other_seed.image, straight[0].image)


def test_heldout_scenes_are_no_easier_than_imagegraphs() -> None:
    """A filled box scores 0.5 to 0.7 as on photographs; a third is occluded or concave."""
    images = list(scene_images(world("heldout"), 60, seed=0))
    rles = [annotation.rle for image in images for annotation in image.annotations]
    assert 0.50 <= filled_box_iou(rles).mean() <= 0.70
    concave = np.mean([_is_concave(decode(rle)) for rle in rles])
    occluded = np.mean([hidden for scene in scenes("heldout", 60) for hidden in scene.occluded])
    assert concave >= 1 / 3
    assert occluded >= 1 / 3


def _is_concave(mask: Bool[np.ndarray, "h w"]) -> bool:
    return bool(mask.sum() < 0.9 * convex_hull_image(mask).sum())
