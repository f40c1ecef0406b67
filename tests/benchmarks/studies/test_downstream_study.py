"""Bookkeeping of the downstream study: its sets, its records, its table; nothing is trained."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies.downstream import configs
from benchmarks.studies.downstream.__main__ import named_file
from benchmarks.studies.downstream.data import (
    animals_annotations,
    heldout_sources,
    source_of,
    training_photos,
)
from benchmarks.studies.downstream.detection import drawn_boxes, mean_boxes
from benchmarks.studies.downstream.runs import (
    RunPlan,
    RunRecord,
    all_records,
    finish_run,
    record_baseline,
    write_record,
)
from benchmarks.studies.downstream.table import rows, write_table
from efficientsam_pl.rle import decode

TOP1 = "heldout/top1"


def recorded(out: Path, encoder: str, seed: int, top1: float) -> RunRecord:
    plan = RunPlan("classification", encoder, seed, 10, 32)
    record = RunRecord(
        **vars(plan), scores={TOP1: top1}, curve={TOP1: {5: 0.1, 10: top1}}, processor_s=7.0
    )
    write_record(plan.folder(out), record)
    return record


def test_table_has_what_has_finished_and_gains_seed_by_seed(tmp_path: Path) -> None:
    for seed, (scratch, mae) in enumerate([(0.30, 0.34), (0.32, 0.33)]):
        recorded(tmp_path, "scratch", seed, scratch)
        recorded(tmp_path, "mae", seed, mae)
    recorded(tmp_path, "sami", 1, 0.40)
    (tmp_path / "classification-sami-0").mkdir()  # not finished
    write_table(tmp_path / "table.md", all_records(tmp_path), "a command", "Words.")
    text = (tmp_path / "table.md").read_text()
    assert "| scratch | 2 | 0.310 ± 0.014 |" in text
    assert "mae less scratch, top-1: +0.040, +0.010 by seed." in text
    assert "sami less scratch, top-1: +0.080 by seed." in text
    assert "| 10 | 0.300 | 0.320 | 0.340 | 0.330 | 0.400 |" in text
    values = {row.id: row.value for row in rows(all_records(tmp_path))}
    assert values["downstream.classification.sami.top1"] == 0.4


def test_a_finished_run_is_not_trained_again_and_one_of_another_length_refused(
    tmp_path: Path,
) -> None:
    record = recorded(tmp_path, "scratch", 0, 0.3)
    plan = RunPlan("classification", "scratch", 0, 10, 32)
    untouched: object = None  # a recipe would be trained
    assert finish_run(plan, tmp_path, untouched, (TOP1,)) == record  # type: ignore[arg-type]
    longer = RunPlan("classification", "scratch", 0, 20, 32)
    with pytest.raises(SystemExit, match="10 steps, not 20"):
        finish_run(longer, tmp_path, untouched, (TOP1,))  # type: ignore[arg-type]


def test_baselines_come_first_and_have_no_steps(tmp_path: Path) -> None:
    plan = RunPlan("semantic", "mae", 0, 10, 4)
    write_record(plan.folder(tmp_path), RunRecord(**vars(plan), scores={"heldout/miou": 0.3}))
    record_baseline(tmp_path, "semantic", "usual class", {"heldout/miou": 0.2})
    write_table(tmp_path / "table.md", all_records(tmp_path), "a command", "Words.")
    text = (tmp_path / "table.md").read_text()
    first = text.index("| usual class | 1 | 0.200 |")
    assert first < text.index("| mae | 1 | 0.300 |")
    assert "by seed" not in text


def test_mean_box_of_a_class_is_relative_to_its_images() -> None:
    content = {
        "images": [{"id": 0, "width": 100, "height": 50}, {"id": 1, "width": 10, "height": 10}],
        "categories": [{"id": 3, "name": "bear"}, {"id": 7, "name": "deer"}],
        "annotations": [
            {"image_id": 0, "category_id": 3, "bbox": [0, 0, 50, 50]},
            {"image_id": 1, "category_id": 3, "bbox": [5, 0, 5, 10]},
            {"image_id": 1, "category_id": 7, "bbox": [2, 2, 4, 4]},
        ],
    }
    boxes, shares = mean_boxes(content)
    np.testing.assert_allclose(boxes, [[0.25, 0, 0.5, 1], [0.2, 0.2, 0.4, 0.4]])
    np.testing.assert_allclose(shares, [2 / 3, 1 / 3])
    drawn = drawn_boxes(boxes, shares, (20, 40))
    np.testing.assert_allclose(drawn.boxes_xywh[0], [10, 0, 20, 20])
    assert decode(drawn.masks[0]).sum() == 400


def test_no_held_out_photo_is_trained_on(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFICIENTSAM_SHARED", str(shared))
    photos, animals = training_photos(shared / "data"), shared / "data/animals"
    assert len(photos) == 2000 + 697 + 200 + 367
    assert not {part for path in photos for part in path.parts} & {"val", "valid", "test"}
    file = animals_annotations(animals, "train", tmp_path / "train.json")
    content = json.loads(file.read_text())
    names = {source_of(image["file_name"]) for image in content["images"]}
    assert len(content["images"]) == 697
    assert not names & heldout_sources(animals)


def test_an_encoder_is_a_name_and_an_existing_file(tmp_path: Path) -> None:
    file = tmp_path / "encoder.safetensors"
    with pytest.raises(SystemExit, match="there is no file"):
        named_file(f"sami={file}")
    file.touch()
    assert named_file(f"sami={file}") == ("sami", str(file))
    with pytest.raises(SystemExit, match="NAME=FILE"):
        named_file(str(file))


def test_all_tasks_have_the_pretrained_encoder(tmp_path: Path) -> None:
    plan, shards = RunPlan("detection", "scratch", 0, 8, 4), {"train": "t.tar", "heldout": "h.tar"}
    shape = configs.pretraining("t.tar", plan, tmp_path).sami.student
    for config in (configs.detection, configs.semantic):
        vit = config(shards, plan, tmp_path, None).model.vit
        assert [getattr(vit, key) for key in ("width", "depth", "heads", "position_grid")] == [
            getattr(shape, key) for key in ("width", "depth", "heads", "position_grid")
        ]


def test_the_last_step_is_validated() -> None:
    every = [configs.trainer(n, 2, v)["validate_every_steps"] for n, v in ((188, 2), (1875, 10))]
    assert every == [94, 375]
    assert configs.trainer(1009, 2, 3)["validate_every_steps"] == 1009
