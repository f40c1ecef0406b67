import numpy as np

from efficientsam_pl.data.config import MaskSelectionConfig
from efficientsam_pl.data.mask_sampling import (
    evaluable_masks,
    random_clicks,
    select_masks,
    tight_boxes,
)
from efficientsam_pl.data.schema import Annotation, Record, annotation_of
from efficientsam_pl.rle import area, encode, run_lengths


def squares(*sides: int) -> list[np.ndarray]:
    masks = []
    for side in sides:
        mask = np.zeros((10, 10), dtype=bool)
        mask[:side, :side] = True
        masks.append(mask)
    return masks


def test_masks_too_small_too_large_empty_or_crowds_are_left_out() -> None:
    every = [annotation_of(encode(m)) for m in squares(0, 1, 3, 5, 10)]
    every.append(annotation_of(encode(squares(4)[0]), crowd=True))
    record = Record(10, 10, tuple(every))
    # 1, 9, 25 and 100 of 100 pixels
    chosen = select_masks(record, MaskSelectionConfig(min_area=0.05, max_area=0.9), key=1)
    assert [area(rle) for rle in chosen] == [9, 25]
    everything = select_masks(record, MaskSelectionConfig(max_area=1.0), key=1)
    assert [area(rle) for rle in everything] == [1, 9, 25, 100]
    assert [area(rle) for rle in evaluable_masks(every)] == [1, 9, 25, 100]


def test_scores_below_the_limits_are_left_out_and_none_stated_passes() -> None:
    rle = encode(squares(3)[0])
    scores = [(0.9, 0.95), (0.7, 0.95), (0.9, 0.5), (None, None)]
    record = Record(10, 10, tuple(Annotation(rle, i, False, *s) for i, s in enumerate(scores, 1)))
    config = MaskSelectionConfig(min_predicted_iou=0.8, min_stability=0.9)
    assert len(select_masks(record, MaskSelectionConfig(), key=1)) == 4
    assert len(select_masks(record, config, key=1)) == 2


def test_clicks_of_a_mask_do_not_depend_on_how_long_its_runs_are() -> None:
    mask = squares(4)[0]
    points = random_clicks(run_lengths([encode(mask), encode(~mask)]), 10, 400, key=5)
    inside, outside = points.long().unbind(0)
    assert mask[inside[:, 1], inside[:, 0]].all()
    assert not mask[outside[:, 1], outside[:, 0]].any()
    counts = np.bincount(inside[:, 0] * 4 + inside[:, 1], minlength=16)
    assert counts.min() > 5  # 25 each


def test_limits_themselves_are_inside() -> None:
    record = Record(10, 10, tuple(annotation_of(encode(m)) for m in squares(3, 5)))
    chosen = select_masks(record, MaskSelectionConfig(min_area=0.09, max_area=0.25), key=1)
    assert len(chosen) == 2


def test_boxes_of_no_masks_have_four_columns() -> None:
    assert tight_boxes([]).shape == (0, 4)
    assert tight_boxes([encode(squares(3)[0])]).tolist() == [[0, 0, 2, 2]]
