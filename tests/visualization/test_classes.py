"""Cards and sheets of classified images."""

import numpy as np

from efficientsam_pl.visualization.classes import (
    ClassifiedImage,
    ClassShare,
    class_card,
    class_sheet,
)
from efficientsam_pl.visualization.palette import MASK_COLOURS

BLUE, GREEN = MASK_COLOURS[0], (18, 158, 70)
IMAGE = np.full((40, 80, 3), 200, np.uint8)


def pixels(card: object, colour: tuple[int, int, int]) -> int:
    return int((np.array(card) == colour).all(-1).sum())


def test_bars_are_as_long_as_probabilities() -> None:
    lengths = []
    for share in (0.2, 0.4, 0.8):
        card = class_card(ClassifiedImage(IMAGE, (ClassShare("cat", share),)))
        columns = (np.array(card) == BLUE).all(-1).any(0)
        lengths.append(columns.sum())
    assert np.allclose(np.array(lengths) / lengths[2], [0.25, 0.5, 1], atol=0.03)


def test_the_true_class_is_green_wherever_it_stands() -> None:
    classes = (ClassShare("cat", 0.6), ClassShare("dog", 0.4))
    card = class_card(ClassifiedImage(IMAGE, classes, truth="dog"))
    assert pixels(card, GREEN) > 0
    assert pixels(card, BLUE) > pixels(card, GREEN)
    assert pixels(class_card(ClassifiedImage(IMAGE, classes)), GREEN) == 0


def test_long_names_stay_within_the_card() -> None:
    entry = ClassShare("a very long name of a class " * 10, 0.5)
    short = class_card(ClassifiedImage(IMAGE, (ClassShare("cat", 0.5),)))
    assert class_card(ClassifiedImage(IMAGE, (entry,))).size == short.size


def test_a_sheet_holds_every_card() -> None:
    one = ClassifiedImage(IMAGE, (ClassShare("cat", 0.5),), truth="cat")
    card, sheet = class_card(one, 256), class_sheet([one] * 5)
    assert sheet.size == (2 * card.width, 3 * card.height)
    assert pixels(sheet, GREEN) == 5 * pixels(card, GREEN)
