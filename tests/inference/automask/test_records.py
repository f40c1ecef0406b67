import numpy as np

from efficientsam_pl.inference.automask.records import MaskSet
from efficientsam_pl.rle import encode


def mask_set(left: int, iou: float) -> MaskSet:
    mask = np.zeros((6, 8), dtype=bool)
    mask[1:4, left : left + 2] = True
    return MaskSet(
        (encode(mask),),
        np.array([[left, 1, left + 1, 3]]),
        np.array([iou], np.float32),
        np.array([0.75], np.float32),
        np.array([[left + 0.5, 2.0]]),
        np.array([[0, 0, 8, 6]]),
    )


def test_a_record_by_hand() -> None:
    [record] = mask_set(3, 0.5).records()
    assert record == {
        "segmentation": {"size": [6, 8], "counts": record["segmentation"]["counts"]},
        "area": 6,
        "bbox": [3, 1, 1, 2],
        "predicted_iou": 0.5,
        "point_coords": [[3.5, 2.0]],
        "stability_score": 0.75,
        "crop_box": [0, 0, 8, 6],
    }


def test_sets_are_concatenated_and_filtered_by_index_or_bool() -> None:
    every = MaskSet.cat([mask_set(0, 0.25), mask_set(2, 0.5), MaskSet.cat([]), mask_set(4, 0.75)])
    assert every.iou.tolist() == [0.25, 0.5, 0.75]
    assert every.filter(np.array([2, 0])).iou.tolist() == [0.75, 0.25]
    assert every.filter(np.array([False, True, False])).rles == mask_set(2, 0.5).rles
