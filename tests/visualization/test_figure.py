import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientsam_pl import rle
from efficientsam_pl.rle import Rle
from efficientsam_pl.visualization.figure import (
    FigureContent,
    FigureRow,
    row_pictures,
    same_objects,
    write_figure,
)
from efficientsam_pl.visualization.overlay import DrawnPrompt, overlay
from efficientsam_pl.visualization.palette import MASK_COLOURS, object_colour

HEIGHT, WIDTH = 60, 90


def square(x: int, y: int, side: int = 20) -> Rle:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return rle.encode(mask)


def image() -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8)


def everything(*predictions: Sequence[Rle]) -> FigureRow:
    return FigureRow("everything", image(), (), tuple(map(tuple, predictions)))


def boxes(*predictions: Sequence[Rle]) -> FigureRow:
    prompts = tuple(DrawnPrompt((), (), (x, 5.0, x + 19, 24.0)) for x in (5.0, 60.0))
    return FigureRow("box", image(), prompts, tuple(map(tuple, predictions)))


def count(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(picture) == colour).all(-1).sum())


def test_same_object_has_the_same_number_whatever_its_place() -> None:
    a, b, c = square(5, 5), square(40, 5), square(5, 38)
    # b one pixel aside: IoU 19 / 21; c and a new mask far away
    other = [square(41, 5), square(60, 38), square(5, 38)]
    assert same_objects([[a, b, c], other]) == [[0, 1, 2], [1, 3, 2]]


def test_objects_that_only_later_models_find_are_the_same_among_them() -> None:
    a, late = square(5, 5), square(60, 30)
    assert same_objects([[a], [late], [late, a]]) == [[0], [1], [1, 0]]
    assert same_objects([[], [a], []]) == [[], [0], []]


def test_best_pair_is_matched_first_and_an_object_only_once() -> None:
    # IoU with the first: 16 / 24 = 2/3 and 18 / 22 = 9/11
    assert same_objects([[square(10, 10)], [square(14, 10), square(12, 10)]]) == [[0], [1, 0]]


def test_half_overlap_is_the_limit() -> None:
    half = np.zeros((HEIGHT, WIDTH), dtype=bool)
    half[5:25, 5:15] = True
    assert same_objects([[square(5, 5)], [rle.encode(half)]]) == [[0], [0]]
    half[5, 5] = False
    assert same_objects([[square(5, 5)], [rle.encode(half)]]) == [[0], [1]]


def test_colours_of_an_object_agree_between_columns() -> None:
    small, large = square(5, 5, 12), square(40, 5, 30)
    _, first, second = row_pictures(everything([small, large], [large, small]))
    for number in (0, 1):
        colour = MASK_COLOURS[number]
        assert count(first, colour) == count(second, colour) > 200
    assert np.array_equal(np.asarray(first), np.asarray(second))


def test_prompted_masks_have_their_prompts_colour_even_where_they_are_swapped() -> None:
    left, right = square(5, 5), square(60, 5)
    row = boxes([left, right], [right, left])
    assert row.objects() == [[0, 1], [0, 1]]
    drawn, first, _ = row_pictures(row)
    for colour in MASK_COLOURS[:2]:
        assert count(drawn, colour) > 100
        assert count(first, colour) > count(drawn, colour)


def test_colours_of_a_hundred_objects_differ() -> None:
    assert len({object_colour(i) for i in range(100)}) == 100
    assert tuple(object_colour(i) for i in range(7)) == MASK_COLOURS


def test_saliency_darkens_the_input_alone() -> None:
    light = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    light[:, :45] = 1.0
    row = FigureRow("saliency", image(), (), ((),), light)
    shown, drawn_masks = (np.asarray(picture) for picture in row_pictures(row))
    assert (shown[:, :100] == 128).all()
    assert (shown[:, -100:] == round(0.2 * 128)).all()
    assert (drawn_masks == 128).all()


def test_pictures_stand_pixel_by_pixel_in_the_png(tmp_path: Path) -> None:
    row = everything([square(5, 5)], [square(40, 5)])
    write_figure(FigureContent(("Input", "SAM", "ours"), (row,)), [tmp_path / "f.png"])
    page = np.asarray(Image.open(tmp_path / "f.png").convert("RGB"))
    for number, picture in enumerate(row_pictures(row)):
        part = np.asarray(picture)
        left, top = 58 + number * (420 + 12), 52  # of inches at 200 pixels each
        assert np.array_equal(page[top : top + part.shape[0], left : left + part.shape[1]], part)


def test_every_form_is_written_and_titles_of_vector_forms_are_letters(tmp_path: Path) -> None:
    paths = [tmp_path / f"f.{kind}" for kind in ("png", "svg", "pdf")]
    row = boxes([square(5, 5), square(60, 5)])
    write_figure(FigureContent(("Input", "EfficientSAM-Ti"), (row,)), paths)
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[2].read_bytes().startswith(b"%PDF")
    texts = [e.text for e in ET.parse(paths[1]).iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["Input", "EfficientSAM-Ti", "box"]
    before = [path.read_bytes() for path in paths]
    write_figure(FigureContent(("Input", "EfficientSAM-Ti"), (row,)), paths)
    assert [path.read_bytes() for path in paths] == before


def test_long_titles_and_labels_stay_within_their_cells(tmp_path: Path) -> None:
    flat = FigureRow("a label much longer than its row", image()[:12], (), ((), ()))
    titles = ("Input", "a model with a name that is far too long for its column " * 3, "B")
    write_figure(FigureContent(titles, (flat,)), [tmp_path / "f.png", tmp_path / "f.svg"])
    page = np.asarray(Image.open(tmp_path / "f.png").convert("RGB"))
    assert (page[:2] == 255).all()
    assert (page[-3:] == 255).all()
    text = (tmp_path / "f.svg").read_text()
    assert "…" in text
    assert ">B<" in text
    title_rows = page[:40]  # above the pictures; between the columns nothing is written
    ink = np.flatnonzero((title_rows < 200).any(axis=(0, 2)))
    starts = [58 + i * (420 + 12) for i in range(3)]
    for column, left in zip(ink, [starts] * len(ink), strict=True):
        assert any(at - 1 <= column <= at + 421 for at in left)


def test_wrong_content_is_refused(tmp_path: Path) -> None:
    row = everything([square(5, 5)])
    with pytest.raises(ValueError, match="a figure without a row"):
        FigureContent(("Input",), ())
    with pytest.raises(ValueError, match="row 'everything' has 1 predictions for 2 models"):
        FigureContent(("Input", "a", "b"), (row,))
    with pytest.raises(ValueError, match="1 masks for 2 prompts"):
        boxes([square(5, 5)])
    with pytest.raises(ValueError, match=r"must end in \.png, \.svg or \.pdf"):
        write_figure(FigureContent(("Input", "a"), (row,)), [tmp_path / "f.jpg"])
    assert list(tmp_path.iterdir()) == []


def test_masks_and_prompts_without_a_colour_are_refused() -> None:
    masks = np.zeros((2, HEIGHT, WIDTH), dtype=bool)
    with pytest.raises(ValueError, match="1 colours for 2 masks and 0 prompts"):
        overlay(image(), masks, colours=[(1, 2, 3)])


def test_matplotlib_is_imported_on_use_and_named_where_it_is_missing() -> None:
    program = """
import sys
from efficientsam_pl.visualization import figure, evaluation_plots, vector
assert "matplotlib" not in sys.modules
sys.modules["matplotlib"] = None
try:
    vector.new_figure(1, 1)
except ValueError as error:
    assert "pip install 'efficientsam_pl[figure]'" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], check=True)
