import numpy as np
import pytest

from efficientsam_pl.visualization.contact_sheet import SheetLayout
from efficientsam_pl.visualization.features import (
    FeatureColours,
    expand_to_patches,
    feature_sheet,
    masked_images,
    reconstruction_sheet,
)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_axes_are_the_right_singular_vectors_up_to_their_sign() -> None:
    features = noise(50, 7) * np.array([1, 5, 2, 0.1, 9, 3, 0.5]) + 4
    colours = FeatureColours.of(features)
    _, _, right = np.linalg.svd(features - features.mean(0), full_matrices=False)
    assert np.allclose(np.abs((colours.axes * right[:3]).sum(1)), 1)
    np.testing.assert_allclose(colours.mean, features.mean(0))


def test_sign_is_that_of_the_largest_entry_whatever_the_order_of_the_features() -> None:
    features = noise(40, 5)
    colours, again = FeatureColours.of(features), FeatureColours.of(features[::-1])
    np.testing.assert_allclose(colours.axes, again.axes, atol=1e-9)
    largest = np.take_along_axis(
        colours.axes, np.abs(colours.axes).argmax(1, keepdims=True), axis=1
    )
    assert (largest > 0).all()


def test_colours_of_a_line_in_each_direction_by_hand() -> None:
    """Variance falls from the first channel to the third; each is a separate axis."""
    ramp = np.arange(-50.0, 51)  # 1st and 99th percentile: -49 and 49
    zero = np.zeros_like(ramp)
    features = np.concatenate(
        [
            np.stack([9 * ramp, zero, zero], 1),
            np.stack([zero, 3 * ramp, zero], 1),
            np.stack([zero, zero, ramp], 1),
        ]
    )
    colours = FeatureColours.of(features)
    np.testing.assert_allclose(colours.axes, np.eye(3), atol=1e-12)
    # of 303 values 101 are the ramp and 202 are zero: the 99th percentile, number 298.98 of
    # 0..302, lies at 0.98 of the way between the fourth- and the third-largest: 46.98
    np.testing.assert_allclose(colours.high, [9 * 46.98, 3 * 46.98, 46.98])
    np.testing.assert_allclose(colours.low, [-9 * 46.98, -3 * 46.98, -46.98])
    points = 46.98 * np.array([[9 * -0.6, 3 * 0.2, 0.6], [9, -3, 1e6], [9 * -1.1, 0.6, -1e6]])
    # a fifth of the way, three fifths, four fifths of 255; ends; beyond the ends
    np.testing.assert_array_equal(colours(points), [[51, 153, 204], [255, 0, 255], [0, 153, 0]])


def test_features_without_any_difference_are_no_crash() -> None:
    same = np.ones((9, 4))
    np.testing.assert_array_equal(FeatureColours.of(same)(same), np.zeros((9, 3)))


def test_two_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="2 channels, but three"):
        FeatureColours.of(noise(9, 2))


def test_masked_patches_are_grey_and_the_others_unchanged() -> None:
    images = np.full((1, 4, 4, 3), 7, np.uint8)
    seen = masked_images(images, np.array([[False, True, False, False]]))
    expected = np.full((4, 4), 7)
    expected[:2, 2:] = 128  # row-major: the second patch is the upper right one
    np.testing.assert_array_equal(seen[0, ..., 0], expected)


def test_a_value_covers_its_patch() -> None:
    values = np.arange(12, dtype=np.uint8).reshape(1, 4, 3)
    spread = expand_to_patches(values, 6)
    assert spread.shape == (1, 6, 6, 3)
    np.testing.assert_array_equal(spread[0, 3:, :3], np.broadcast_to([6, 7, 8], (3, 3, 3)))


def test_sheet_shows_equal_features_in_equal_colours() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    masked = np.array([[False, True, True, True], [True, True, True, False]])
    features = noise(2, 4, 8).astype(np.float32)
    sheet = np.array(feature_sheet(images, masked, features, features, ["one", "two"]))
    # cells of 7 * 32 = 224 pixels, gaps of 11, letters of 15: titles of 30
    layout = SheetLayout.for_cell(224)
    assert (layout.gap, layout.title_height) == (11, 30)
    assert sheet.shape == (11 + 30 + 2 * (30 + 224 + 11), 11 + 4 * (224 + 11), 3)
    top = 11 + 30 + 30
    image, seen, teacher, predicted = (
        sheet[top : top + 224, layout.left(i) : layout.left(i) + 224] for i in range(4)
    )
    np.testing.assert_array_equal(image, images[0].repeat(7, 0).repeat(7, 1))
    np.testing.assert_array_equal(seen[:112, :112], image[:112, :112])
    assert (seen[112:] == 128).all()
    np.testing.assert_array_equal(teacher, predicted)
    assert len(np.unique(teacher.reshape(-1, 3), axis=0)) == 4


def test_reconstruction_keeps_what_was_seen() -> None:
    images = np.full((1, 32, 32, 3), 10, np.uint8)
    predicted = np.full((1, 32, 32, 3), 200, np.uint8)
    masked = np.array([[True, False, False, False]])
    sheet = np.array(reconstruction_sheet(images, masked, predicted, ["one"]))
    assert sheet.shape == (11 + 30 + 30 + 224 + 11, 11 + 3 * (224 + 11), 3)
    cell = sheet[71 : 71 + 224, 11 + 2 * 235 :][:, :224]
    assert (cell[:112, :112] == 200).all()
    assert (cell[112:] == 10).all()
