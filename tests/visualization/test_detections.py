"""Pictures of detected objects: where they are drawn, and the sheet of found and annotated ones."""

import numpy as np

from efficientsam_pl.rle import encode
from efficientsam_pl.visualization.detections import (
    DetectedImage,
    DrawnObject,
    detection_sheet,
    draw_objects,
)
from efficientsam_pl.visualization.palette import object_colour

GREY = np.full((200, 300, 3), 128, dtype=np.uint8)


def rectangle(number: int, score: float | None = None) -> DrawnObject:
    mask = np.zeros((200, 300), dtype=bool)
    mask[80:160, 100:220] = True
    return DrawnObject("cat", number, (100.0, 80.0, 220.0, 160.0), encode(mask), score)


def test_an_object_is_tinted_in_its_class_colour_and_framed() -> None:
    for number in (0, 9):
        picture = np.asarray(draw_objects(GREY, [rectangle(number, 0.9)])).astype(int)
        colour = np.array(object_colour(number))
        inside, outside = picture[120, 160], picture[190, 290]
        assert np.abs(inside - (0.45 * colour + 0.55 * 128)).max() <= 2
        assert (outside == 128).all()
        assert np.abs(picture[120, 219] - colour).max() <= 2  # the last column of the object


def test_the_label_names_class_and_score() -> None:
    assert rectangle(0, 0.876).text() == "cat 88 %"
    assert rectangle(0).text() == "cat"


def test_a_sheet_shows_found_beside_annotated_and_enlarges_small_images() -> None:
    small = DrawnObject("cat", 0, (2.0, 2.0, 8.0, 6.0), encode(np.ones((10, 12), dtype=bool)))
    image = DetectedImage(np.zeros((10, 12, 3), dtype=np.uint8), (small,), (small,))
    sheet = detection_sheet([image, image], cell_px=120)
    assert sheet.width > 240
    assert sheet.height > 200
    alone = detection_sheet([DetectedImage(GREY, ())], cell_px=120)
    assert alone.width < 150
    assert detection_sheet([]).width > 0
