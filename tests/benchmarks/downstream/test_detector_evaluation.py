"""The benchmark's references compute what they are said to, and its rows meet their equalities."""

from pathlib import Path

import numpy as np
import torch

from benchmarks.downstream.evaluation import evaluation_rows, paste_in_a_loop, prepare_pasting
from efficientsam_pl.rle import areas


def test_masks_pasted_in_a_loop_are_detectron2s(shared: Path) -> None:
    golden = np.load(shared / "golden/downstream/paste_masks.npz")
    boxes, probs = torch.from_numpy(golden["boxes"]), torch.from_numpy(golden["masks"])
    height, width = golden["image_hw"].tolist()
    pasted = areas(paste_in_a_loop(probs, boxes, (height, width)))
    np.testing.assert_allclose(pasted, golden["area"], rtol=1e-3, atol=2)


def test_ours_and_the_references_agree() -> None:
    assert np.array_equal(areas(prepare_pasting("ours")()), areas(prepare_pasting("plain")()))
    rows = {row.id: row for row in evaluation_rows(images=6, seconds=0, memory=False)}
    assert rows["downstream.coco_evaluation_difference"].value < 1e-9
