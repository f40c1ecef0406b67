"""That the mask AP benchmark compares the same numbers; its times are not judged here."""

from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.finetune import mask_ap
from efficientsam_pl.evaluation.metrics.matching import AveragePrecision


def test_all_ways_give_the_same_numbers() -> None:
    photos = mask_ap.masked_images(4, masks=5)
    found = mask_ap.ours(photos)
    assert isinstance(found, AveragePrecision)
    theirs: Any = mask_ap.by_torchmetrics(photos)
    coco: Any = mask_ap.by_coco([mask_ap.encoded(p) for p in photos], COCO, COCOeval)
    assert 0 < found.ap < 1
    np.testing.assert_allclose(found, coco[:12], rtol=0, atol=1e-9)
    names = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
    names += ("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large")
    np.testing.assert_allclose(found, [float(theirs[n]) for n in names], rtol=0, atol=1e-6)


def test_quick_rows_leave_out_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    few = mask_ap.masked_images(2, masks=3)
    monkeypatch.setattr(mask_ap, "masked_images", lambda count, masks: few)
    rows = {row.id: row for row in mask_ap.rows(quick=True)}
    assert {"finetune.mask_ap", "finetune.mask_ap_backend.ours"} <= rows.keys()
    assert rows["finetune.mask_ap_difference"].met() is True
    assert "finetune.mask_ap_memory" not in rows


@pytest.mark.slow
def test_coco_val_is_as_large_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Counted(mask_ap.MaskAp):  # type: ignore[misc]
        def update(self, image_id: str, truth: Any, detections: Any, scores: Any) -> None:
            seen.append(len(truth))
            super().update(image_id, truth, detections, scores)

    monkeypatch.setattr(mask_ap, "MaskAp", Counted)
    found = mask_ap.prepare_coco_val(20, 100)()
    assert isinstance(found, AveragePrecision)
    assert (len(seen), sum(seen)) == (20, 100)
