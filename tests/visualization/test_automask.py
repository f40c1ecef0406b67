import numpy as np

from efficientsam_pl.rle import encode
from efficientsam_pl.visualization.automask import ListedMask, everything_overlay, everything_sheet


def listed(*extents: tuple[int, int, int, int]) -> list[ListedMask]:
    masks = []
    for x0, y0, x1, y1 in extents:
        mask = np.zeros((120, 160), dtype=bool)
        mask[y0:y1, x0:x1] = True
        masks.append(ListedMask(encode(mask), 0.9, 0.97))
    return masks


def test_a_masks_colour_does_not_depend_on_the_others() -> None:
    image = np.full((120, 160, 3), 128, np.uint8)
    alone = np.array(everything_overlay(image, listed((10, 10, 40, 40))))
    beside = np.array(everything_overlay(image, listed((80, 60, 150, 110), (10, 10, 40, 40))))
    np.testing.assert_array_equal(alone[:50, :50], beside[:50, :50])
    assert (alone[25, 25] != 128).any()
    assert (beside[100, 20] == 128).all()


def test_a_small_mask_is_drawn_above_a_large_one_whatever_their_order() -> None:
    image = np.full((120, 160, 3), 128, np.uint8)
    small, large = listed((50, 40, 80, 70), (10, 10, 150, 110))
    pictures = [
        np.array(everything_overlay(image, masks)) for masks in ([small, large], [large, small])
    ]
    np.testing.assert_array_equal(*pictures)
    assert (pictures[0][55, 65] != pictures[0][55, 100]).any()


def test_a_sheet_holds_each_mask_and_at_most_64() -> None:
    image = np.full((120, 160, 3), 128, np.uint8)
    masks = listed(*((x, 10, x + 20, 40) for x in range(100)))
    single, eight, many = (everything_sheet(image, masks[:n], "photo") for n in (1, 8, 100))
    assert single.width < eight.width == many.width
    assert many.height > 7 * (eight.height - 60)
    assert everything_sheet(image, masks[:64], "p").size == many.size


def test_no_mask_leaves_the_image() -> None:
    image = np.full((120, 160, 3), 128, np.uint8)
    np.testing.assert_array_equal(np.array(everything_overlay(image, [])), image)
    assert everything_sheet(image, [], "photo").width > 160


def test_an_empty_mask_can_be_drawn() -> None:
    image = np.full((120, 160, 3), 128, np.uint8)
    masks = [ListedMask(encode(np.zeros((120, 160), dtype=bool)), 0.5, 0.0)]
    np.testing.assert_array_equal(np.array(everything_overlay(image, masks)), image)
    assert everything_sheet(image, masks, "photo").width > 160
