import json
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Bool, UInt8
from PIL import Image

from efficientsam_pl import rle
from efficientsam_pl.structures import Label
from efficientsam_pl.visualization.marks import Pen, draw_chip
from efficientsam_pl.visualization.overlay import TINT_ALPHA, DrawnPrompt, mask_image, overlay
from efficientsam_pl.visualization.palette import MASK_COLOURS, WHITE, ink_on

GREY = 100


def grey_image(height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    return np.full((height, width, 3), GREY, np.uint8)


def rectangle(height: int, width: int, box: tuple[int, int, int, int]) -> Bool[np.ndarray, "1 h w"]:
    x0, y0, x1, y1 = box
    mask = np.zeros((1, height, width), bool)
    mask[:, y0 : y1 + 1, x0 : x1 + 1] = True
    return mask


def test_line_is_inside_the_mask_edge_outside_and_the_rest_of_the_image_untouched() -> None:
    mask = rectangle(120, 160, (40, 30, 99, 79))
    drawn = np.array(overlay(grey_image(120, 160), mask))
    pen = Pen.for_image(160, 120)
    assert (pen.line, pen.edge) == (2, 1)
    row = drawn[55]  # through the middle: image, edge, line, tint, line, edge, image
    colour = MASK_COLOURS[0]
    tint = [round((1 - TINT_ALPHA) * GREY + TINT_ALPHA * c) for c in colour]
    assert (row[:39] == GREY).all()
    assert (row[39] == WHITE).all()
    assert (row[40:42] == colour).all()
    assert np.abs(row[42:98].astype(int) - tint).max() <= 1
    assert (row[98:100] == colour).all()
    assert (row[100] == WHITE).all()
    assert (row[101:] == GREY).all()
    np.testing.assert_array_equal(drawn[:, 70, 0] != GREY, (np.arange(120) - 29) % 120 < 52)


def test_overlay_leaves_its_arguments_as_they_were() -> None:
    image, mask = grey_image(50, 60), rectangle(50, 60, (10, 10, 40, 40))
    overlay(image, mask, [DrawnPrompt(((20.0, 20.0),), (1,), None)], [0.5])
    np.testing.assert_array_equal(image, grey_image(50, 60))
    np.testing.assert_array_equal(mask, rectangle(50, 60, (10, 10, 40, 40)))


def test_no_masks_and_an_empty_mask_give_the_image_back() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for count in (0, 2):
        drawn = overlay(image, np.zeros((count, 40, 50), bool))
        np.testing.assert_array_equal(np.array(drawn), image)


def test_whole_image_as_mask_has_its_line_along_the_frame() -> None:
    drawn = np.array(overlay(grey_image(30, 40), np.ones((1, 30, 40), bool)))
    border = np.ones((30, 40), bool)
    border[2:-2, 2:-2] = False
    np.testing.assert_array_equal((drawn == MASK_COLOURS[0]).all(-1), border)


def test_small_mask_is_seen_on_a_large_one_whatever_their_order() -> None:
    large = rectangle(200, 200, (20, 20, 180, 180))
    small = rectangle(200, 200, (90, 90, 110, 110))
    image = grey_image(200, 200)
    for order, colour in (((large, small), MASK_COLOURS[1]), ((small, large), MASK_COLOURS[0])):
        drawn = overlay(image, np.concatenate(order))
        assert drawn.getpixel((90, 100)) == colour


def test_positive_click_is_green_and_negative_red_within_their_radius() -> None:
    prompt = DrawnPrompt(((50.0, 60.0), (150.0, 60.0)), (Label.POSITIVE, Label.NEGATIVE), None)
    drawn = np.array(overlay(grey_image(120, 200), np.zeros((0, 120, 200), bool), [prompt]))
    radius = Pen.for_image(200, 120).click_radius
    changed_y, changed_x = np.nonzero((drawn != GREY).any(-1))
    nearest = np.minimum(
        np.hypot(changed_x - 50, changed_y - 60), np.hypot(changed_x - 150, changed_y - 60)
    )
    assert nearest.max() <= radius + 1
    green, red = drawn[60, 50].astype(int), drawn[63, 150].astype(int)
    assert green[1] > green[0] + 50
    assert green[1] > green[2] + 50
    assert red[0] > max(red[1], red[2]) + 100
    assert (drawn[:, :100] == 255).all(-1).any()  # both have a white edge
    assert (drawn[:, 100:] == 255).all(-1).any()


def test_padding_points_are_not_drawn() -> None:
    image = grey_image(60, 60)
    prompt = DrawnPrompt(((30.0, 30.0),), (Label.PADDING,), None)
    drawn = overlay(image, np.zeros((0, 60, 60), bool), [prompt])
    np.testing.assert_array_equal(np.array(drawn), image)


def test_box_is_a_frame_in_the_colour_of_its_mask() -> None:
    boxes = (
        (20.0, 30.0, 80.0, 90.0),
        (140.0, 90.0, 100.0, 30.0),
    )  # the second with swapped corners
    prompts = [DrawnPrompt((), (), box) for box in boxes]
    drawn = overlay(grey_image(120, 160), np.zeros((0, 120, 160), bool), prompts)
    for x0, x1, colour in ((20, 80, MASK_COLOURS[0]), (100, 140, MASK_COLOURS[1])):
        for point in ((x0, 60), (x1, 60), ((x0 + x1) // 2, 30), ((x0 + x1) // 2, 90)):
            assert drawn.getpixel(point) == colour
        assert drawn.getpixel(((x0 + x1) // 2, 60)) == (GREY,) * 3


def test_iou_is_written_near_its_mask_in_its_colour() -> None:
    image, mask = grey_image(300, 400), rectangle(300, 400, (250, 150, 300, 250))
    without, labelled = overlay(image, mask), overlay(image, mask, iou=[0.93])
    changed = (np.array(without) != np.array(labelled)).any(-1)
    rows, columns = np.nonzero(changed)
    assert rows.min() > 100  # just above the mask
    assert rows.max() < 150
    assert columns.min() >= 249
    assert ((np.array(labelled) == MASK_COLOURS[0]).all(-1) & changed).sum() > 100


def test_chips_of_masks_at_one_place_do_not_cover_each_other() -> None:
    canvas, pen = Image.new("RGB", (400, 300)), Pen.for_image(400, 300)
    frames: list[tuple[float, float, float, float]] = []
    for _ in range(8):
        frames.append(
            draw_chip(canvas, "IoU 0.50", (150.0, 100.0, 250.0, 200.0), WHITE, pen, frames)
        )
    for i, a in enumerate(frames):
        assert 0 <= a[0] < a[2] <= 400
        assert 0 <= a[1] < a[3] <= 300
        for b in frames[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (700, 2), (256, 256), (1500, 2250)])
def test_any_size_of_image_is_drawn_at_its_size(size: tuple[int, int]) -> None:
    masks = np.ones((2, *size), bool)
    masks[1] = False
    prompt = DrawnPrompt(((0.0, 0.0), (5000.0, -20.0)), (1, 0), (-5.0, -5.0, 3000.0, 3000.0))
    drawn = overlay(np.zeros((*size, 3), np.uint8), masks, [prompt, prompt], [0.1, float("nan")])
    assert (drawn.height, drawn.width, drawn.mode) == (*size, "RGB")


def test_marks_grow_with_the_image_and_with_how_small_it_will_be_shown() -> None:
    small, large = Pen.for_image(256, 256), Pen.for_image(2560, 2560)
    assert large.text >= 4 * small.text
    assert large.click_radius >= 4 * small.click_radius
    reduced = Pen.for_image(2560, 2560, shown_px=256)
    assert reduced.text == 10 * small.text
    assert reduced.line == 10 * small.line


def test_wrong_numbers_of_values_are_refused() -> None:
    with pytest.raises(ValueError, match="1 IoU values for 2 masks"):
        overlay(grey_image(8, 8), np.zeros((2, 8, 8), bool), iou=[0.5])
    with pytest.raises(ValueError, match="1 points, but 2 labels"):
        DrawnPrompt(((1.0, 2.0),), (1, 0), None)


def test_mask_image_is_black_and_white() -> None:
    mask = np.array([[True, False, False], [False, False, True]])
    drawn = mask_image(mask)
    assert drawn.mode == "L"
    np.testing.assert_array_equal(np.array(drawn), [[255, 0, 0], [0, 0, 255]])


def test_letters_have_at_least_three_to_one_contrast_on_every_mask_colour() -> None:
    def luminance(colour: tuple[int, int, int]) -> float:
        share = np.array(colour) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for colour in MASK_COLOURS:
        lights = sorted((luminance(colour), luminance(ink_on(colour))))
        assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 3


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
def test_real_masks_change_their_pixels_and_no_distant_ones(shared: Path) -> None:
    folder = shared / "data" / "coco_val2014_100"
    annotations = json.loads((folder / "instances_val2014_100.json").read_text())
    image = next(i for i in annotations["images"] if i["id"] == 400)
    pixels = np.array(Image.open(folder / "images" / image["file_name"]).convert("RGB"))
    height, width = pixels.shape[:2]
    masks = np.stack(
        [
            rle.decode(rle.from_coco(a["segmentation"], height, width))
            for a in annotations["annotations"]
            if a["image_id"] == 400
        ]
    )
    changed = (np.array(overlay(pixels, masks)) != pixels).any(-1)
    union = masks.any(0)
    assert changed[union].mean() > 0.99
    reach = Pen.for_image(width, height).edge
    near = np.zeros_like(union)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            near |= np.roll(union, (dy, dx), (0, 1))
    assert not changed[~near].any()
