import numpy as np
import pytest
from PIL import Image

from efficientsam_pl.visualization.contact_sheet import (
    ERROR_LEGEND,
    SheetLayout,
    contact_sheet,
    draw_legend,
    error_map,
)
from efficientsam_pl.visualization.masks import CELL_PX
from efficientsam_pl.visualization.palette import fitted, font

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def plain(width: int, height: int, colour: tuple[int, int, int] = RED) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def test_layout_of_a_hundred_and_fifty_pixel_cell() -> None:
    assert SheetLayout.for_cell(150) == SheetLayout(cell=150, gap=8, text=12, title_height=24)


def test_sheet_is_as_large_as_its_cells_gaps_and_titles() -> None:
    rows = [[plain(300, 200), plain(150, 75)], [plain(100, 200), plain(10, 10)]]
    sheet = contact_sheet(rows, ["a", "b"], cell_px=150)
    # columns: 8 + 150 + 8 + 150 + 8; rows: 8 + title 24, then 100 + 8 and 150 + 8
    assert sheet.size == (324, 32 + 108 + 158)
    titled = contact_sheet(rows, ["a", "b"], ["first", "second"], cell_px=150)
    assert titled.size == (324, 298 + 2 * 24)


def test_sheet_without_column_titles_has_no_line_for_them() -> None:
    rows = [[plain(10, 10, RED), plain(10, 10, BLUE)]]
    sheet = contact_sheet(rows, [], cell_px=150)
    assert sheet.size == (324, 8 + 158)
    assert sheet.getpixel((8, 8)) == RED
    assert sheet.getpixel((166, 8)) == BLUE


def test_pictures_keep_their_aspect_and_stand_in_their_cells() -> None:
    sheet = contact_sheet(
        [[plain(300, 200, RED), plain(50, 100, GREEN)], [plain(10, 10, BLUE), plain(10, 10, RED)]],
        ["", ""],
        cell_px=150,
    )
    for colour, frames in (
        (RED, [(8, 57, 158, 157), (166, 190, 316, 340)]),  # centred in a row 150 high
        (GREEN, [(166 + 37, 32, 166 + 37 + 75, 182)]),
        (BLUE, [(8, 190, 158, 340)]),
    ):
        expected = np.zeros((sheet.height, sheet.width), bool)
        for x0, y0, x1, y1 in frames:
            expected[y0:y1, x0:x1] = True
        np.testing.assert_array_equal((np.array(sheet) == colour).all(-1), expected)


def test_grey_and_one_bit_pictures_keep_their_white() -> None:
    white = np.full((10, 10), 255, np.uint8)
    rows = [[Image.fromarray(white), Image.fromarray(white).convert("1")]]
    sheet = contact_sheet(rows, ["", ""], cell_px=150)
    assert sheet.getpixel((80, 100)) == (255, 255, 255)
    assert sheet.getpixel((240, 100)) == (255, 255, 255)


def test_long_titles_stay_in_their_column() -> None:
    rows = [[plain(9, 9), plain(9, 9)]]
    untitled = np.array(contact_sheet(rows, ["", ""], cell_px=150))
    titled = np.array(contact_sheet(rows, ["a title far too long for its column", ""], cell_px=150))
    _, columns = np.nonzero((untitled != titled).any(-1))
    assert columns.min() >= 8
    assert columns.max() < 158


def test_fitted_text_is_the_text_or_ends_in_an_ellipsis() -> None:
    assert fitted("short", 12, 100) == "short"
    assert fitted("0.5 → 0.8", 12, 100) == "0.5 -> 0.8"
    cut = fitted("a title far too long", 12, 60)
    assert cut.endswith("…")
    assert font(12).getlength(cut) <= 60


def test_rows_and_titles_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="row 1 has 1 pictures, 2 titles"):
        contact_sheet([[plain(1, 1), plain(1, 1)], [plain(1, 1)]], ["a", "b"])
    with pytest.raises(ValueError, match="2 row titles for 1 rows"):
        contact_sheet([[plain(1, 1)]], ["a"], ["first", "second"])


def test_sheet_without_rows_is_its_titles() -> None:
    assert contact_sheet([], ["a"], cell_px=150).size == (166, 32)


def test_error_map_shows_missed_and_surplus_pixels_by_hand() -> None:
    predicted = np.array([[[True, True, False, False]]])
    truth = np.array([[[True, False, True, False]]])
    image = np.full((1, 4, 3), 200, np.uint8)
    hit, surplus, missed, rest = np.array(error_map(image, predicted, truth))[0]
    np.testing.assert_array_equal(hit, [200, 200, 200])  # as bright as the image
    np.testing.assert_array_equal(rest, [90, 90, 90])  # 0.45 of it
    # 215 of 255 parts of the colour over the grey image, which is dimmed in the background
    for pixel, (_, colour) in ((missed, ERROR_LEGEND[0]), (surplus, ERROR_LEGEND[1])):
        expected = (215 * np.array(colour) + 40 * 90) / 255
        np.testing.assert_allclose(pixel, expected, atol=1)


def test_error_map_of_two_masks_counts_each_against_its_truth() -> None:
    """They are exchanged: whatever is painted, no pixel is right."""
    truth = np.array([[[True, False, False]], [[False, True, False]]])
    image = np.full((1, 3, 3), 200, np.uint8)
    exchanged = np.array(error_map(image, truth[::-1], truth))[0]
    alone = np.array(error_map(image, truth[:1] & False, truth[:1]))[0]
    np.testing.assert_array_equal(exchanged[0], exchanged[1])
    np.testing.assert_array_equal(exchanged[0], alone[0])  # missed goes before too much


def test_errors_differ_in_lightness_so_that_no_colour_need_be_seen() -> None:
    lighter, darker = (relative_luminance(colour) for _, colour in ERROR_LEGEND)
    assert (lighter + 0.05) / (darker + 0.05) > 3  # WCAG 2.2, 1.4.11, for graphical objects


def relative_luminance(colour: tuple[int, int, int]) -> float:
    """WCAG's, of sRGB."""
    share = np.array(colour) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_legend_has_a_square_of_each_colour_and_stays_on_its_line() -> None:
    layout = SheetLayout.for_cell(150)  # letters of 12 pixels, lines of 24
    blank = plain(300, 60, (255, 255, 255))
    drawn = blank.copy()
    draw_legend(drawn, "error:", (("first", GREEN), ("second", BLUE)), (20, 10), layout)
    rows, columns = np.nonzero((np.array(drawn) != np.array(blank)).any(-1))
    assert (rows.min() >= 10, rows.max() < 34, columns.min() >= 20) == (True, True, True)
    for colour in (GREEN, BLUE):
        pixels = (np.array(drawn) == colour).all(-1)
        assert pixels.sum() == 9 * 9  # 2 * round(0.4 * 12) + 1 pixels per side, minus the rim


def test_legend_of_the_errors_fits_into_its_column() -> None:
    layout = SheetLayout.for_cell(CELL_PX)
    blank = plain(2 * CELL_PX, 60, (255, 255, 255))
    drawn = blank.copy()
    draw_legend(drawn, "error:", ERROR_LEGEND, (0, 10), layout)
    _, columns = np.nonzero((np.array(drawn) != np.array(blank)).any(-1))
    assert columns.max() < CELL_PX
