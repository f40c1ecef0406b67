"""Scores of a detector: against pycocotools, on ranks, resumed, and sets that are refused."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from efficientsam_pl.commands.compare import run as compare
from efficientsam_pl.commands.detection.evaluate import run
from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.config.load import ConfigError
from efficientsam_pl.data.images.files import read_image
from efficientsam_pl.errors import UserError
from efficientsam_pl.inference.detections import detected_objects
from efficientsam_pl.inference.detector import detect_image, load_detector
from efficientsam_pl.models.config import LoadedModelConfig
from tests.commands.detection.conftest import (
    CATEGORIES,
    Home,
    pack,
    write_annotations,
    write_detector,
)


def config(home: Home, out: Path, **changes: Any) -> EvaluateConfig:
    plain = {
        "model": LoadedModelConfig(weights=str(home.weights)),
        "shards": home.shards,
        "out": str(out),
        "accelerator": "cpu",
    }
    return EvaluateConfig(**(plain | changes))


def coco(home: Home, out: Path, **changes: Any) -> EvaluateConfig:
    paths = {"annotations": str(home.annotations), "images": str(home.images), "shards": ""}
    return config(home, out, kind="coco", **(paths | changes))


def numbers(file: Path) -> dict[str, Any]:
    """Return all of a result that may not depend on who computed it, when and how."""
    result: dict[str, Any] = json.loads(file.read_text())
    assert result.pop("run")
    return result


def by_pycocotools(home: Home) -> dict[str, list[float]]:
    model = load_detector(str(home.weights))
    results = []
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(home.annotations))
        for image in truth.dataset["images"]:
            hw = (image["height"], image["width"])
            detections = detect_image(model, read_image(home.images / image["file_name"]))
            found = detected_objects(detections, hw)
            columns = zip(
                found.classes, found.scores, found.boxes_xywh.tolist(), found.masks, strict=True
            )
            for number, score, box, mask in columns:
                ids = {"image_id": image["id"], "category_id": CATEGORIES[number]["id"]}
                results.append(ids | {"score": score, "bbox": box, "segmentation": mask})
        assert results
        scores = {}
        for kind, shape in (("bbox", "bbox"), ("segm", "segmentation")):
            kept = ("image_id", "category_id", "score", shape)  # with a box its area counts
            loaded = truth.loadRes([{key: r[key] for key in kept} for r in results])
            evaluation = COCOeval(truth, loaded, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            scores[kind] = evaluation.stats.tolist()
    return scores


def test_a_cocos_file_gives_pycocotools_numbers(home: Home, tmp_path: Path) -> None:
    run(coco(home, tmp_path / "coco.json"))
    result = numbers(tmp_path / "coco.json")
    scores = by_pycocotools(home)
    for kind, protocol in (("bbox", "detection_boxes"), ("segm", "detection_masks")):
        ours = list(result["numbers"][protocol]["ap"].values())
        assert ours == pytest.approx(scores[kind], abs=1e-9)
        assert result["numbers"][protocol]["ap_by_category"].keys() == {"cat", "dog"}
    assert result["counts"] == {
        "photos": 7,
        "damaged_photos": 0,
        "photos_without_objects": 1,
        "instances": 18,
        "crowds": 3,
        "detections": result["counts"]["detections"],
        "classes_without_instances": 1,
    }


def test_shards_are_scored_alike_on_ranks_and_resumed(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, shared = tmp_path / "whole.json", tmp_path / "shared.json"
    run(config(home, whole))
    told = capsys.readouterr().out
    assert "7 photos, 0 damaged: box AP" in told
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        run(config(home, shared))
        assert shared.exists() == (rank == "0")
    assert numbers(whole) == numbers(shared)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID", "RANK"):
        monkeypatch.delenv(name)
    kept = tmp_path / "shared.parts/rank-0.jsonl"
    kept.write_text("".join(kept.read_text().splitlines(keepends=True)[:1]))
    run(config(home, shared))
    assert numbers(whole) == numbers(shared)
    # boxes and areas are the file's in one set and the masks' in the other: nearly the same
    run(coco(home, tmp_path / "coco.json"))
    ours, theirs = (
        numbers(f)["numbers"]["detection_masks"] for f in (whole, tmp_path / "coco.json")
    )
    assert ours["ap"]["ap50"] == pytest.approx(theirs["ap"]["ap50"], abs=0.02)


def test_the_paper_stands_beside_detectors_of_eighty_classes(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "coco.json"
    run(coco(home, out))
    result = json.loads(out.read_text())
    compare([out], None, paper=True)
    assert "it is of 80 classes, ours of 3" in " ".join(capsys.readouterr().out.split())
    for protocol in result["protocols"].values():
        protocol["classes"] = 80
    out.write_text(json.dumps(result))
    compare([out], tmp_path / "table.md", paper=True)
    table = (tmp_path / "table.md").read_text()
    assert "COCO box AP" in table
    assert "COCO mask AP" in table
    cells = [cell.strip() for line in table.splitlines() for cell in line.split("|")]
    for row in ("*MAE-Ti*", "*SAMI-Ti*", "*SAMI-B*"):
        assert row in cells
    for value in ("37.9", "34.9", "44.7", "40.0", "52.5", "46.5"):
        assert value in cells


def test_other_categories_than_the_detectors_are_refused(home: Home, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    swapped = [CATEGORIES[0], CATEGORIES[1], {"id": 9, "name": "hen"}]
    other = write_annotations(tmp_path / "other", swapped)
    with pytest.raises(UserError, match=r"class 2 is 'hen' .* and 'owl'"):
        run(coco(home, out, annotations=str(other)))
    with pytest.raises(UserError, match=r"other categories than .*tiny\.safetensors"):
        run(config(home, out, shards=pack(other, tmp_path / "shards")))
    fewer = write_annotations(tmp_path / "fewer", CATEGORIES[:2])
    with pytest.raises(UserError, match=r"has 2 categories, and .* tells 3 apart"):
        run(coco(home, out, annotations=str(fewer)))
    none = write_annotations(tmp_path / "none", [])
    with pytest.raises(UserError, match="lists no category"):
        run(coco(home, out, annotations=str(none)))
    with pytest.raises(UserError, match="have no categories"):
        run(config(home, out, shards=pack(none, tmp_path / "plain")))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"protocols": ("box",)}, r"protocols=\[box\] has no effect with a detector"),
        ({"seed": 3}, "seed=3 has no effect with a detector"),
        ({"plots": True}, "plots=true has no effect with a detector"),
        ({"kind": "lvis", "annotations": "a", "images": "b", "shards": ""}, "kind=lvis"),
    ],
)
def test_keys_without_effect_are_refused(
    changes: dict[str, Any], named: str, home: Home, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=named):
        run(replace(config(home, tmp_path / "result.json"), **changes))


def test_a_file_without_a_detector_is_refused(home: Home, tmp_path: Path) -> None:
    file = write_detector(tmp_path / "other.safetensors", classes=4, labels=(), category_ids=())
    with pytest.raises(UserError, match="head of 3 classes"):
        load_detector(str(file))
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "plain.pt")
    with pytest.raises(UserError, match=r"plain\.pt"):
        load_detector(str(tmp_path / "plain.pt"))
