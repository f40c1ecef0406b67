import numpy as np
import pytest

from efficientsam_pl.visualization.contact_sheet import SheetLayout
from efficientsam_pl.visualization.masks import CELL_PX, ProtocolMasks, mask_sheet
from efficientsam_pl.visualization.overlay import DrawnPrompt

BOX = DrawnPrompt((), (), (64.0, 32.0, 191.0, 95.0))
CLICK = DrawnPrompt(((100.0, 60.0),), (1,), None)


def prediction(prompt: DrawnPrompt, shift: int = 0, iou: float = 1.0) -> ProtocolMasks:
    """A grey image with a rectangle; the prediction is shifted to the right."""
    truth = np.zeros((1, CELL_PX // 2, CELL_PX), bool)
    truth[:, 32:96, 64:192] = True
    return ProtocolMasks(
        key="photo",
        protocol="box",
        image=np.full((CELL_PX // 2, CELL_PX, 3), 100, np.uint8),
        prompts=(prompt,),
        truth=truth,
        predicted=np.roll(truth, shift, axis=2),
        iou=(iou,),
        predicted_iou=(0.5,),
    )


def cells(masks: ProtocolMasks) -> list[np.ndarray]:
    sheet, layout = np.array(mask_sheet([masks])), SheetLayout.for_cell(CELL_PX)
    top = layout.gap + 2 * layout.title_height
    height = masks.image.shape[0]
    return [
        sheet[top : top + height, layout.left(i) : layout.left(i) + CELL_PX].astype(int)
        for i in range(4)
    ]


def test_title_tells_image_prompt_and_both_ious() -> None:
    assert prediction(BOX, iou=0.755).title() == "photo, box: IoU 0.76 (predicted 0.50)"


def test_sheet_has_a_row_for_each_prediction() -> None:
    layout = SheetLayout.for_cell(CELL_PX)
    sheet = mask_sheet([prediction(BOX), prediction(CLICK)])
    row = layout.title_height + CELL_PX // 2 + layout.gap
    assert sheet.size == (layout.left(4), layout.gap + layout.title_height + 2 * row)


@pytest.mark.parametrize("count", [3, 12, 24])
@pytest.mark.parametrize("hw", [(CELL_PX, CELL_PX), (CELL_PX, 171), (171, CELL_PX)])
def test_sheet_of_many_predictions_fits_a_screen(count: int, hw: tuple[int, int]) -> None:
    masks = np.zeros((1, *hw), bool)
    image = np.full((*hw, 3), 100, np.uint8)
    row = ProtocolMasks("photo", "box", image, (), masks, masks, (1.0,), (1.0,))
    width, height = mask_sheet([row] * count).size
    assert max(width, height) <= 1600
    assert width >= SheetLayout.for_cell(CELL_PX).left(4)


def test_image_shows_the_prompt_alone() -> None:
    shown, plain = cells(prediction(BOX))[0], prediction(BOX).image.astype(int)
    changed = (shown != plain).any(-1)
    assert changed[32, 64:192].all()  # the box's upper side
    assert not changed[50:80, 90:160].any()  # nothing inside it
    clicked = (cells(prediction(CLICK))[0] != plain).any(-1)
    assert clicked[60, 100]
    assert not clicked[:, 150:].any()


def test_truth_and_a_right_prediction_look_alike_but_for_its_label() -> None:
    _, truth, predicted, error = cells(prediction(BOX))
    differs = (truth != predicted).any(-1)
    assert 0 < differs.sum() < 100 * 25  # the label
    np.testing.assert_array_equal(error[32:96, 64:192], 100)  # all right: the image, as it is
    assert (error[:30] == 45).all()  # 0.45 of it


def test_shifted_prediction_misses_on_one_side_and_has_too_much_on_the_other() -> None:
    error = cells(prediction(BOX, shift=20))[3]
    left, right = error[40:90, 64:84], error[40:90, 192:212]
    assert (left == left[0, 0]).all()
    assert (right == right[0, 0]).all()
    assert left[0, 0, 1] > right[0, 0, 1] + 100  # missed is yellow, too much is violet
    np.testing.assert_array_equal(error[40:90, 84:192], 100)


@pytest.mark.parametrize("size", [(1, 256), (256, 1), (3, 200)])
def test_extreme_image_is_drawn(size: tuple[int, int]) -> None:
    masks = np.ones((1, *size), bool)
    image = np.zeros((*size, 3), np.uint8)
    row = ProtocolMasks("thin", "box", image, (BOX,), masks, masks, (1.0,), (1.0,))
    assert mask_sheet([row]).width == SheetLayout.for_cell(CELL_PX).left(4)


def test_no_predictions_are_a_sheet_of_titles() -> None:
    layout = SheetLayout.for_cell(CELL_PX)
    assert mask_sheet([]).size == (layout.left(4), layout.gap + layout.title_height)
