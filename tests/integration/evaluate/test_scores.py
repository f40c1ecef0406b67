"""Scores of `evaluate`: counted, compared with pycocotools, the same in any order and batch."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from efficientsam_pl.commands.evaluate.command import evaluate
from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.config import load as configs
from efficientsam_pl.evaluation.interfaces import PromptableModel
from efficientsam_pl.inference.hub import load_model
from efficientsam_pl.inference.predictor import SamPredictor

if TYPE_CHECKING:
    from tests.integration.evaluate.conftest import DiscSet


ROOT = Path(__file__).resolve().parents[3]
PHOTOS = 7  # of the set of discs


def test_everything_is_counted_and_told(discs: "DiscSet", reference: Path) -> None:
    told = json.loads(reference.read_text())
    instances = sum(1 + image % 3 for image in range(40, 40 + PHOTOS))
    counts = told["counts"]
    assert (counts["photos"], counts["instances"]) == (PHOTOS, instances)
    assert (counts["skipped_crowds"], counts["skipped_empty"]) == (1, 1)
    assert counts["detections"] == instances
    assert set(told["numbers"]) == {*discs.protocols, "detector_boxes"}
    for name, found in told["numbers"].items():
        if name != "detector_boxes":
            assert 0 <= found["miou"]["all"] <= found["oracle_miou"]["all"] <= 1
    assert len(told["numbers"]["detector_boxes"]["ap"]) == 12
    assert told["protocols"]["click_iterative_3"]["mask_rule"].endswith("the mask fed back")
    assert told["protocols"]["detector_boxes"]["second_pass"] is True
    assert re.fullmatch("[0-9a-f]{64}", told["model"]["weights_sha256"])
    assert told["run"]["files"]["annotations_sha256"]
    assert discs.scored_photos(reference.with_suffix(".parts")) == list(range(40, 40 + PHOTOS))


def test_detector_boxes_score_what_pycocotools_counts(
    discs: "DiscSet", reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (reference.with_suffix(".parts") / "rank-0.jsonl").read_text().splitlines()
    found = [
        {"image_id": record["photo"], "category_id": category, "score": score,
         "segmentation": {"size": size, "counts": counts}}
        for record in map(json.loads, lines)
        for category, score, size, counts in record["detections"]
    ]  # fmt: skip
    set_ = COCO(str(discs.folder / "set.json"))
    evaluation = COCOeval(set_, set_.loadRes(found), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    ours = discs.numbers(reference)["numbers"]["detector_boxes"]["ap"]
    assert list(ours.values()) == pytest.approx(evaluation.stats.tolist(), abs=1e-9)


def test_batch_size_changes_no_digit(
    discs: "DiscSet", reference: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    for at_once in (3, 64):
        out = tmp_path / f"{at_once}.json"
        run(discs.arguments(f"out={out}", f"prompts_at_once={at_once}"))
        assert discs.numbers(out) == discs.numbers(reference)


def test_order_of_images_changes_no_digit(
    discs: "DiscSet", reference: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    listed = json.loads((discs.folder / "set.json").read_text())
    for part in listed.values():
        random.Random(1).shuffle(part)
    (tmp_path / "set.json").write_text(json.dumps(listed))
    run(discs.arguments(f"out={tmp_path}/a.json", f"annotations={tmp_path}/set.json"))
    assert discs.numbers(tmp_path / "a.json") == discs.numbers(reference)


def test_model_is_read_from_its_own_file_and_a_name_must_not_contradict_it(
    discs: "DiscSet", reference: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    out = tmp_path / "unnamed.json"
    unnamed = [a for a in discs.arguments(f"out={out}") if not a.startswith("model.name=")]
    run(unnamed)
    named, by_file = (json.loads(file.read_text()) for file in (reference, out))
    assert by_file["numbers"] == named["numbers"]
    assert by_file["model"] == named["model"] | {"name": "tiny"}  # the stem of either file
    other = "model.name=efficient_sam_s_interactive"
    said = run(discs.arguments(other, f"out={tmp_path}/o.json"), code=2)
    assert "tiny.safetensors holds weights of another model" in said


def test_damaged_image_is_counted_and_scored_once_it_is_whole(
    discs: "DiscSet", reference: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for file in (discs.folder / "photos").iterdir():
        (photos / file.name).write_bytes(file.read_bytes())
    whole = (photos / "44.jpg").read_bytes()
    (photos / "44.jpg").write_bytes(whole[: len(whole) // 2])
    arguments = discs.arguments(f"out={tmp_path}/a.json", f"images={photos}")
    assert "6 photos" in run(arguments)
    told = discs.numbers(tmp_path / "a.json")
    assert told["counts"]["damaged_photos"] == 1
    [damage] = told["damaged"]
    assert damage["kind"] == "bad photo"
    assert "44" in damage["photo"]
    (photos / "44.jpg").write_bytes(whole)
    run(arguments)
    assert discs.numbers(tmp_path / "a.json") == discs.numbers(reference)


def test_missing_image_is_told(discs: "DiscSet", tmp_path: Path, run: Callable[..., str]) -> None:
    listed = json.loads((discs.folder / "set.json").read_text())
    listed["images"][2]["file_name"] = "gone.jpg"
    (tmp_path / "set.json").write_text(json.dumps(listed))
    arguments = discs.arguments(f"out={tmp_path}/a.json", f"annotations={tmp_path}/set.json")
    assert "1 damaged" in run(arguments)
    told = discs.numbers(tmp_path / "a.json")
    assert told["counts"]["photos"] == PHOTOS - 1
    assert [one["kind"] for one in told["damaged"]] == ["missing photo"]


def test_ground_truth_scores_one_everywhere(
    discs: "DiscSet", tmp_path: Path, run: Callable[..., str]
) -> None:
    listed = json.loads((discs.folder / "set.json").read_text())
    # in AP an instance without a pixel is one that nobody finds, as COCO counts
    listed["annotations"] = [one for one in listed["annotations"] if one["area"] > 0]
    (tmp_path / "set.json").write_text(json.dumps(listed))
    given = [f"annotations={tmp_path}/set.json", "baseline=ground_truth"]
    run(discs.arguments(f"out={tmp_path}/a.json", *given))
    told = discs.numbers(tmp_path / "a.json")
    for name, found in told["numbers"].items():
        if name == "detector_boxes":
            assert found["ap"]["ap"] == found["ap"]["ar100"] == 1.0
        else:
            assert found["miou"]["all"] == found["oracle_miou"]["all"] == 1.0
    assert told["model"] == {"name": "ground truth", "baseline": "ground_truth"}


def test_annotations_that_cannot_be_used_are_no_false_alarms(
    discs: "DiscSet", tmp_path: Path, run: Callable[..., str]
) -> None:
    """A perfect detector finds their objects, too."""
    listed = json.loads((discs.folder / "set.json").read_text())
    annotations = [one for one in listed["annotations"] if one["area"] > 0]
    broken: list[dict[str, Any]] = [
        {"segmentation": [[1.0, 2.0]]},
        {"segmentation": None},
        {"category_id": None},
        {"iscrowd": "perhaps"},
    ]
    for annotation, change in zip(annotations, broken, strict=False):
        annotation.update(change)
    (tmp_path / "set.json").write_text(json.dumps(listed | {"annotations": annotations}))
    given = [f"annotations={tmp_path}/set.json", "baseline=ground_truth"]
    said = run(discs.arguments(f"out={tmp_path}/a.json", *given))
    told = discs.numbers(tmp_path / "a.json")
    ap = told["numbers"]["detector_boxes"]["ap"]
    assert ap["ap"] == ap["ar100"] == 1.0
    # the one without a category has a mask to score
    instances = sum(1 + image % 3 for image in range(40, 40 + PHOTOS)) - 3
    assert told["counts"]["instances"] == instances
    assert told["counts"]["skipped_crowds"] == 1
    for line in (
        "annotation that cannot be used: 2, such as annotation 100 (a polygon of fewer than three",
        "annotation without a mask: 1, such as annotation 101 (no segmentation, in 40.jpg)",
        "annotation without a category, no part of AP: 1, such as annotation 102 (",
    ):
        assert line in said


def test_crowds_may_be_objects_and_categories_are_needed_for_detections_only(
    discs: "DiscSet", tmp_path: Path, run: Callable[..., str]
) -> None:
    listed = json.loads((discs.folder / "set.json").read_text())
    del listed["categories"]
    (tmp_path / "set.json").write_text(json.dumps(listed))
    given = [f"annotations={tmp_path}/set.json", "baseline=ground_truth", f"out={tmp_path}/a.json"]
    message = run(discs.arguments(*given), code=2)
    assert "set.json lists no category, and detections are scored by category" in message
    given += ["detector.results=null", "detector.second_pass=false", "protocols=[box]"]
    run(discs.arguments(*given))
    ignored = discs.numbers(tmp_path / "a.json")
    assert 'data.crowds=null for "objects"' in run(
        discs.arguments(*given, "crowds=objects"), code=2
    )
    run(discs.arguments(*given, "crowds=objects", "fresh=true"))
    counts = discs.numbers(tmp_path / "a.json")["counts"]
    assert counts["instances"] == ignored["counts"]["instances"] + 1
    assert (ignored["counts"]["skipped_crowds"], counts["skipped_crowds"]) == (1, 0)


def test_filled_box_scores_what_ten_lines_of_pycocotools_count(
    shared: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    folder = shared / "data/coco/COCO-MINI"
    file = folder / "annotations/instances_val2017.json"
    run([
        "evaluate", "kind=coco", f"annotations={file}", f"images={folder}/val2017",
        "baseline=filled_box", "protocols=[box]", f"out={tmp_path}/a.json",
    ])  # fmt: skip
    set_ = COCO(str(file))
    ious: dict[str, list[float]] = {"all": [], "small": [], "medium": [], "large": []}
    for one in set_.loadAnns(set_.getAnnIds(iscrowd=False)):
        mask = set_.annToMask(one).astype(bool)
        if one["area"] > 0 and mask.any():
            filled = np.outer(mask.any(axis=1), np.ones(mask.shape[1], bool))
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            filled = np.zeros_like(mask)
            filled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
            size = ["small", "medium", "large"][(one["area"] >= 1024) + (one["area"] >= 9216)]
            for name in ("all", size):
                ious[name].append((mask & filled).sum() / (mask | filled).sum())
    told = json.loads((tmp_path / "a.json").read_text())
    expected = {name: float(np.mean(values)) for name, values in ious.items()}
    for key in ("miou", "oracle_miou", "filled_box_miou"):
        assert told["numbers"]["box"][key] == pytest.approx(expected, abs=1e-12)
    assert "reachable_miou" not in told["numbers"]["box"]  # it has no mask grid
    assert told["counts"]["instances"] == len(ious["all"]) == 619


def test_lvis_scores_ground_truth_as_perfect(
    shared: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    folder = shared / "data/lvis_val_100"
    file = folder / "lvis_val_100.json"
    listed = json.loads(file.read_text())
    boxes = [
        {"score": 1.0} | {key: one[key] for key in ("image_id", "category_id", "bbox")}
        for one in listed["annotations"]
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    run([
        "evaluate", "-c", "evaluate/lvis", f"annotations={file}", f"images={folder}/images",
        f"detector.results={tmp_path}/boxes.json", "baseline=ground_truth",
        f"out={tmp_path}/a.json",
    ])  # fmt: skip
    told = json.loads((tmp_path / "a.json").read_text())
    assert told["counts"]["photos"] == 7
    assert told["numbers"]["detector_boxes"]["ap"]["ap"] == 1.0
    assert "ap_rare" in told["numbers"]["detector_boxes"]["ap"]
    assert told["numbers"]["click_random_3"]["miou"]["all"] == 1.0
    assert len(told["damaged"]) == len(listed["images"]) - 7


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "boxes.json is no JSON"),
        ("{}", "boxes.json is no list of detections"),
        ('[{"image_id": 40, "category_id": 3, "score": 1}]', "no 'bbox'"),
        (
            '[{"image_id": 7, "category_id": 3, "score": 1, "bbox": [1, 1, 9, 9]}]',
            "another data set",
        ),
    ],
)
def test_bad_detector_file_is_one_line(
    content: str, told: str, discs: "DiscSet", tmp_path: Path, run: Callable[..., str]
) -> None:
    (tmp_path / "boxes.json").write_text(content)
    boxes = f"detector.results={tmp_path}/boxes.json"
    assert told in run(discs.arguments(f"out={tmp_path}/a.json", boxes), code=2)
    assert not (tmp_path / "a.json").exists()


def test_detections_that_are_left_out_are_counted(
    discs: "DiscSet", tmp_path: Path, run: Callable[..., str]
) -> None:
    good = {"image_id": 40, "category_id": 3, "score": 1.0, "bbox": [1, 1, 9, 9]}
    bad: list[dict[str, Any]] = [{"score": float("nan")}, {"bbox": [900, 1, 9, 9]}, {"image_id": 7}]
    (tmp_path / "boxes.json").write_text(json.dumps([good, *(good | one for one in bad)]))
    boxes = f"detector.results={tmp_path}/boxes.json"
    run(discs.arguments(f"out={tmp_path}/a.json", boxes, "protocols=[]"))
    told = discs.numbers(tmp_path / "a.json")
    assert told["counts"]["detections"] == 1
    assert sum(told["data"]["detections"]["left_out"].values()) == 3


def test_set_without_detections_scores_nothing_and_says_so(
    discs: "DiscSet", tmp_path: Path, run: Callable[..., str]
) -> None:
    (tmp_path / "boxes.json").write_text("[]")
    boxes = f"detector.results={tmp_path}/boxes.json"
    run(discs.arguments(f"out={tmp_path}/a.json", boxes, "protocols=[]"))
    assert discs.numbers(tmp_path / "a.json")["numbers"]["detector_boxes"]["ap"]["ap"] == 0.0


def test_pictures_lie_beside_the_result(
    discs: "DiscSet", reference: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    pytest.importorskip("matplotlib")
    run(discs.arguments(f"out={tmp_path}/a.json", "plots=true"))
    for name in ("a_iou", "a_precision"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 500
        assert (tmp_path / f"{name}.svg").read_text().lstrip().startswith("<?xml")
    assert discs.numbers(tmp_path / "a.json") == discs.numbers(reference)


def test_adapter_of_the_guide_scores_as_the_built_in_model(
    discs: "DiscSet", reference: Path, tmp_path: Path
) -> None:
    text = (ROOT / "docs/evaluation.md").read_text()
    adapter, _ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    defined: dict[str, Any] = {}
    exec(adapter, defined)
    model = load_model(f"{discs.folder}/tiny.yaml", f"{discs.folder}/tiny.safetensors")
    segmenter = defined["Adapter"](SamPredictor(model))
    assert isinstance(segmenter, PromptableModel)
    arguments = discs.arguments(f"out={tmp_path}/a.json", "protocols=[box,click_random_3]")
    config = configs.load(EvaluateConfig, [], arguments[1:])
    assert evaluate(config, segmenter, {"name": "theirs"}) == tmp_path / "a.json"
    ours, theirs = (
        discs.numbers(reference)["numbers"],
        discs.numbers(tmp_path / "a.json")["numbers"],
    )
    assert set(theirs) == {"box", "click_random_3", "detector_boxes"}
    for name, found in theirs.items():
        for key, values in found.items():
            assert values == pytest.approx(ours[name][key], abs=1e-3)  # calls of other shapes
