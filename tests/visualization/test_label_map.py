import numpy as np
from PIL import Image

from efficientsam_pl.visualization.label_map import (
    SegmentedPicture,
    coloured_map,
    label_map_card,
    label_map_sheet,
)
from efficientsam_pl.visualization.palette import object_colour

NAMES = ("sky", "road", "car")


def segmented(image: np.ndarray, labels: np.ndarray) -> SegmentedPicture:
    return SegmentedPicture(image, labels, labels[:, ::-1].copy(), NAMES)


def halves(left: int, right: int) -> np.ndarray:
    labels = np.full((40, 60), left, np.uint8)
    labels[:, 30:] = right
    return labels


def test_ignored_pixels_keep_the_image_and_classes_their_colour_on_any_image() -> None:
    black, white = np.zeros((40, 60, 3), np.uint8), np.full((40, 60, 3), 255, np.uint8)
    for image in (black, white):
        drawn = np.asarray(coloured_map(image, halves(2, 255), 60))
        assert (drawn[:, 31:] == image[:, 31:]).all()
        assert (drawn[:, 29] == 255).all()  # the border
        difference = drawn[5, 5].astype(float) - object_colour(2)
        assert difference @ difference < min(
            np.sum((drawn[5, 5].astype(float) - object_colour(other)) ** 2) for other in (0, 1)
        )


def test_card_and_sheet_show_each_class_in_its_legend() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    card = label_map_card(segmented(image, halves(0, 2)))
    assert _colours(card) >= {object_colour(0), object_colour(2)}
    assert object_colour(1) not in _colours(card)
    sheet = label_map_sheet([segmented(image, halves(0, 2)), segmented(image, halves(1, 255))])
    assert _colours(sheet) >= {object_colour(number) for number in range(3)}


def test_a_hundred_classes_are_summed_up_where_the_legend_has_no_room() -> None:
    labels = np.repeat(np.arange(100, dtype=np.uint8)[None], 60, axis=0)
    card = label_map_card(SegmentedPicture(np.zeros((60, 100, 3), np.uint8), labels, None, ()))
    shown = _colours(card) & {object_colour(number) for number in range(100)}
    assert 8 < len(shown) < 60
    assert card.height < 500


def _colours(picture: Image.Image) -> set[tuple[int, ...]]:
    pixels = np.asarray(picture).astype(int) @ (65536, 256, 1)
    return {(code >> 16, code >> 8 & 255, code & 255) for code in np.unique(pixels).tolist()}
