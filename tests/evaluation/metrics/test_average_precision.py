import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from efficientsam_pl import rle
from efficientsam_pl.evaluation.metrics.average_precision import (
    AveragePrecision,
    MaskAp,
    coco_average_precision,
)
from efficientsam_pl.evaluation.metrics.matching import averages
from efficientsam_pl.evaluation.metrics.mean_iou import MeanIouBySize
from efficientsam_pl.evaluation.metrics.overlaps import PredictedMasks, coco_overlaps
from efficientsam_pl.records import Instance, InstanceImage

# pycocotools on shared/data/coco_val2014_100, from its README
ORACLE = {
    "segm": (
        0.3195452758576433, 0.5622883972521636, 0.29892653412086784,
        0.3873740315997837, 0.31018272403369485, 0.3269339071005138,
        0.2682297225711534, 0.41544868114906375, 0.4168394992198818,
        0.4694498622754236, 0.37675922666197265, 0.3814715099715099,
    ),
    "bbox": (
        0.5045806987249628, 0.6969727247299577, 0.5729816669904824,
        0.5856257209410443, 0.5193996948036719, 0.5013978987346466,
        0.38681277964578054, 0.5936795762842003, 0.595352982877607,
        0.6398109626113442, 0.5664205978994309, 0.5642905982905982,
    ),
}  # fmt: skip


def read(shared: Path, name: str) -> Any:
    return json.loads((shared / "data/coco_val2014_100" / name).read_text())


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_coco_gives_the_oracles_twelve_numbers(
    shared: Path, iou_type: str, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = read(shared, "instances_val2014_100.json")
    results = read(shared, f"instances_val2014_fake{iou_type}100_results.json")
    before = json.dumps([truth, results])
    found = coco_average_precision(truth, results, iou_type)
    assert found == pytest.approx(ORACLE[iou_type], abs=1e-9)
    assert json.dumps([truth, results]) == before
    assert capsys.readouterr().out == ""


def test_records_of_images_give_the_oracles_numbers(shared: Path) -> None:
    truth = read(shared, "instances_val2014_100.json")
    results = read(shared, "instances_val2014_fakesegm100_results.json")
    images = []
    for image in reversed(truth["images"]):
        hw = (image["height"], image["width"])
        instances = tuple(
            Instance(
                one["id"],
                one["category_id"],
                rle.from_coco(one["segmentation"], *hw),
                float(one["area"]),
                bool(one["iscrowd"]),
            )
            for one in truth["annotations"]
            if one["image_id"] == image["id"]
        )
        own = [one for one in results if one["image_id"] == image["id"]]
        found = PredictedMasks(
            [one["category_id"] for one in own],
            [rle.from_coco(one["segmentation"], *hw) for one in own],
            [one["score"] for one in own],
        )
        images.append(coco_overlaps(InstanceImage(image["id"], "", hw, instances), found))
    assert any(one.objects.crowd.any() for one in images)
    ap = averages(images, [one["id"] for one in truth["categories"]])
    assert ap == pytest.approx(ORACLE["segm"], abs=1e-9)


def test_no_results_score_zero(shared: Path) -> None:
    truth = read(shared, "instances_val2014_100.json")
    assert coco_average_precision(truth, [], "segm") == (0.0,) * 12


def test_results_for_an_unknown_image_are_refused() -> None:
    truth = {"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1}]}
    with pytest.raises(ValueError, match="7"):
        coco_average_precision(truth, [{"image_id": 7}], "bbox")


def square(side: int, *, at: int = 0) -> rle.Rle:
    mask = np.zeros((120, 120), dtype=bool)
    mask[at : at + side, at : at + side] = True
    return rle.encode(mask)


def test_one_of_two_small_squares_found_after_a_false_alarm() -> None:
    metric = MaskAp()
    truth = [square(10), square(10, at=50)]
    metric.update("a", truth, [square(10, at=90), square(10)], torch.tensor([0.9, 0.8]))
    # Precision is 1/2 up to recall 1/2, that is at 51 of COCO's 101 recalls
    ap = 0.5 * 51 / 101
    expected = AveragePrecision(ap, ap, ap, ap, -1, -1, 0, 0.5, 0.5, 0.5, -1, -1)
    assert metric.compute() == pytest.approx(expected)


def test_half_covered_square_counts_at_the_lowest_threshold_only() -> None:
    half = np.zeros((120, 120), dtype=bool)
    half[:40, :20] = True
    metric = MaskAp()
    metric.update("a", [square(40)], [rle.encode(half)], torch.tensor([0.3]))
    found = metric.compute()
    assert (found.ap50, found.ap75) == pytest.approx((1, 0))
    assert (found.ap, found.ar100, found.ar_medium) == pytest.approx((0.1, 0.1, 0.1))
    assert (found.ap_small, found.ap_large) == (-1, -1)


def test_images_without_detections_or_without_objects() -> None:
    metric = MaskAp()
    metric.update("a", [square(10)], [], torch.zeros(0))
    metric.update("b", [], [square(10)], torch.tensor([0.5]))
    metric.update("c", [], [], torch.zeros(0))
    found = metric.compute()
    assert (found.ap, found.ar100) == (0, 0)
    metric.reset()
    metric.update("c", [], [], torch.zeros(0))
    assert metric.compute() == (-1,) * 12


def test_uneven_scores_and_mixed_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="1 scores for 2 detections"):
        MaskAp().update("a", [], [square(1), square(2)], torch.ones(1))
    other = rle.encode(np.ones((3, 4), dtype=bool))
    with pytest.raises(ValueError, match="several sizes"):
        MaskAp().update("a", [square(1)], [other], torch.ones(1))


def class_agnostic(shared: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The oracle's files as one category without crowds, areas counted in pixels."""
    truth = read(shared, "instances_val2014_100.json")
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    kept = [dict(a) for a in truth["annotations"] if not a["iscrowd"]]
    for annotation in kept:
        mask = rle.from_coco(annotation["segmentation"], *sizes[annotation["image_id"]])
        pixels = float(coco_mask.decode(mask).sum())
        annotation.update(segmentation=mask, area=pixels, category_id=1)
    results = read(shared, "instances_val2014_fakesegm100_results.json")
    results = [result | {"category_id": 1} for result in results]
    images = sorted(truth["images"], key=lambda image: image["id"])
    return {"images": images, "annotations": kept, "categories": [{"id": 1}]}, results


def feed(metric: MaskAp, truth: dict[str, Any], results: list[dict[str, Any]]) -> None:
    for image in truth["images"]:
        found = [r for r in results if r["image_id"] == image["id"]]
        metric.update(
            f"{image['id']:012}",
            [a["segmentation"] for a in truth["annotations"] if a["image_id"] == image["id"]],
            [r["segmentation"] for r in found],
            torch.tensor([r["score"] for r in found], dtype=torch.float64),
        )


def test_metric_equals_pycocotools(shared: Path) -> None:
    truth, results = class_agnostic(shared)
    metric = MaskAp()
    feed(metric, truth, results)
    feed(metric, truth, results)  # a second time, as a padding sampler does
    coco = COCO()
    coco.dataset = truth
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert metric.compute() == pytest.approx(tuple(evaluation.stats), abs=1e-9)


def pictures(count: int) -> list[tuple[str, list[rle.Rle], list[rle.Rle], torch.Tensor]]:
    """Images of one to three squares, each found a little beside its place."""
    draw = np.random.default_rng(0)
    made = []
    for index in range(count):
        places = draw.integers(0, 60, size=1 + index % 3).tolist()
        truth = [square(40, at=at) for at in places]
        found = [square(40, at=at + draw.integers(0, 12)) for at in places]
        made.append((f"{index}", truth, found, torch.from_numpy(draw.random(len(places)))))
    return made


def score(made: list[Any]) -> dict[str, Any]:
    mask_ap, mean_iou = MaskAp(), MeanIouBySize()
    for picture in made:
        mask_ap.update(*picture)
        own = picture[-1]  # any numbers do
        mean_iou.update(own, torch.arange(len(own)))
    ap = mask_ap.compute()
    means = {name: mean.value for name, mean in mean_iou.compute().items()}
    mask_ap.update(*pictures(1)[0])  # the state is back to this rank's own
    return {"ap": ap, "mean_iou": means, "lines": len(mask_ap.lines)}


def two_processes(folder: Path, cases: list[tuple[str, str]]) -> list[list[dict[str, Any]]]:
    """Run both ranks; return the scores of each rank in each case."""
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    ranks = [
        subprocess.Popen([*command, str(rank), *shares], stdout=subprocess.PIPE, text=True)
        for rank, shares in enumerate(zip(*cases, strict=True))
    ]
    outputs = [process.communicate(timeout=120)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    return [json.loads(output) for output in outputs]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Also where both have a photo, and where one has none."""
    cases = [("0,1,2,3,4", "5,6,0"), ("", "6,0,1")]
    ranks = two_processes(tmp_path, cases)
    for case, shares in enumerate(cases):
        chosen = [[int(index) for index in share.split(",") if index] for share in shares]
        once = [pictures(7)[index] for index in sorted({*chosen[0], *chosen[1]})]
        every = [pictures(7)[index] for index in chosen[0] + chosen[1]]
        ap = pytest.approx(score(once)["ap"], abs=1e-12)
        mean_iou = pytest.approx(score(every)["mean_iou"], abs=1e-12, nan_ok=True)
        for found, own in zip(ranks, chosen, strict=True):
            assert found[case] == {"ap": ap, "mean_iou": mean_iou, "lines": len(own) + 1}


def main(folder: str, rank: str, *shares: str) -> None:
    """One rank of `test_two_processes_equal_one`."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=int(rank), world_size=2
    )
    made = pictures(7)
    results = [score([made[int(index)] for index in share.split(",") if index]) for share in shares]
    torch.distributed.destroy_process_group()
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
