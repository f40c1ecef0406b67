"""Bookkeeping of the miniature study: its images, plan, teacher, pairs and files, untrained."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.studies.downstream.runs import RunPlan, RunRecord, write_record
from benchmarks.studies.miniature.__main__ import arms_of, run_all, sizes_of
from benchmarks.studies.miniature.configs import (
    Hardware,
    RunPlace,
    finetuning,
    finetuning_from,
    pretraining,
)
from benchmarks.studies.miniature.data import (
    MaskedPhoto,
    Shards,
    coco_format,
    few_of,
    large_masks,
    split_photos,
    unlabelled_photos,
)
from benchmarks.studies.miniature.pictures import mean_curves
from benchmarks.studies.miniature.plan import ARMS, SUBSETS, register
from benchmarks.studies.miniature.probe import fitted, linear_accuracy, standardised
from benchmarks.studies.miniature.results import as_json, differences, students
from benchmarks.studies.miniature.runs import (
    BOX,
    Study,
    chains,
    check_teacher,
    probe_of,
    run_chain,
    train_teacher,
)
from benchmarks.studies.miniature.scores import HeldoutScores, Means, read_scores, write_scores
from benchmarks.studies.miniature.sizes import Sizes
from benchmarks.studies.miniature.table import write_markdown
from efficientsam_pl.errors import UserError

SHARDS = Shards("all.tar", ("few.tar",) * 5, "plain.tar", "plain.tar", "curve.tar", {"coco": "c"})


def study_of(out: Path, *overrides: str) -> Study:
    return Study(out, sizes_of("cpu", False, overrides), SHARDS, Hardware())


def scores_of(box: float, click1: float = 0.3, filled_box: float = 0.5) -> HeldoutScores:
    means = Means(box, click1, filled_box, filled_box, 0.9, masks=10)
    return HeldoutScores({"coco": means, "bsds": means}, {"large": means})


def finish(study: Study, plan: RunPlan, scores: HeldoutScores | None = None) -> None:
    """Leave what a finished run leaves."""
    folder = plan.folder(study.out)
    curve = {BOX: {0: 0.1, plan.steps: 0.5}}
    write_record(folder, RunRecord(**vars(plan), scores={}, curve=curve))
    if scores is not None:
        write_scores(folder, scores)


def finish_chain(study: Study, arm: str, seed: int, boxes: Sequence[float], probe: float) -> None:
    if arm != "scratch":
        finish(study, study.plan("pretraining", arm, seed))
    (study.out / f"probe-{arm}-{seed}").mkdir(parents=True)
    (study.out / f"probe-{arm}-{seed}/probe.json").write_text(json.dumps({"accuracy": probe}))
    for subset, box in zip(SUBSETS, boxes, strict=True):
        finish(study, study.plan(subset, arm, seed), scores_of(box))


def test_no_stage_sees_a_held_out_image_nor_a_copy(shared: Path) -> None:
    split = split_photos(shared / "data")
    unseen = {photo.identity for photos in split.heldout.values() for photo in photos}
    assert not unseen & {photo.identity for photo in split.learned()}
    assert {name: len(photos) for name, photos in split.train.items()} == {
        "coco": 246,  # of 309 with photos of COCO's folders and 3 of val2014's, each once
        "animals": 696,  # of 700: 3 stand in another part, 1 is a held-out COCO photo
        "bsds": 400,
    }
    assert {name: len(photos) for name, photos in split.heldout.items()} == {
        "coco": 63,
        "animals": 280,
        "bsds": 100,
    }
    pretrained = unlabelled_photos(shared / "data", split)
    assert len(pretrained) == 2000 + 246 + 696 + 400
    assert not {part for path in pretrained for part in path.parts} & {"val", "valid", "test"}


def test_small_masks_and_crowds_are_left_out() -> None:
    square = [[0, 0, 10, 0, 10, 10, 0, 10]]
    annotations = (
        {"id": 7, "segmentation": square, "iscrowd": 0, "area": 1.0},  # a wrong area is not read
        {"id": 8, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]},
        {"id": 9, "segmentation": square, "iscrowd": 1},
    )
    photo = large_masks(MaskedPhoto("a/b.jpg", "coco 1", (100, 50), annotations), 0.02)
    content = coco_format([photo])
    assert [a["segmentation"] for a in content["annotations"]] == [square]
    assert content["annotations"][0]["image_id"] == content["images"][0]["id"]
    assert content["images"][0]["file_name"] == "a/b.jpg"


def test_few_images_depend_on_the_seed_and_on_nothing_else() -> None:
    photos = [MaskedPhoto(f"{n}.jpg", f"coco {n}", (1, 1), ()) for n in range(20)]
    drawn = [few_of(photos, 5, seed) for seed in (0, 1)]
    assert drawn[0] != drawn[1]
    assert few_of(photos[::-1], 5, 0) == drawn[0]


def test_plan_is_registered_once_and_other_sizes_are_refused(tmp_path: Path) -> None:
    first = register(tmp_path, Sizes(), 5)
    longer = sizes_of("cpu", False, ["teacher.steps=9000"])
    assert register(tmp_path, longer, 2) == first
    with pytest.raises(UserError, match=r"few_images=63, not 7.*--out"):
        register(tmp_path, sizes_of("cpu", False, ["few_images=7"]), 5)
    content = as_json(tmp_path, first)
    assert content["runs"] == []
    assert content["plan"]["comparisons"][0] == "sami_teacher less scratch"


def test_students_wait_for_a_teacher_that_beats_the_filled_box(tmp_path: Path) -> None:
    weak = study_of(tmp_path, "teacher.steps=100")
    finish(weak, weak.teacher_plan(), scores_of(0.57))
    with pytest.raises(UserError, match=r"by \+0\.0700 .* teacher\.steps=200"):
        check_teacher(weak, train_teacher(weak))
    plan = register(tmp_path, weak.sizes, 5)
    assert as_json(tmp_path, plan)["teacher"] == {"box": 0.57, "filled_box": 0.5}
    good = study_of(tmp_path, "teacher.steps=200")
    finish(good, good.teacher_plan(), scores_of(0.58))
    check_teacher(good, train_teacher(good))
    assert as_json(tmp_path, plan)["teacher"] == {"box": 0.58, "filled_box": 0.5}
    other = study_of(tmp_path, "teacher.steps=300")
    with pytest.raises(UserError, match=r"students of the teacher .*steps200.*not .*steps300"):
        check_teacher(other, scores_of(0.9))


def test_finished_pieces_are_read_and_none_begins_after_the_time(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    finish_chain(study, "mae", 0, (0.5, 0.6), 0.4)
    assert run_chain(study, "mae", 0) is None  # its shards do not exist: nothing is trained
    assert probe_of(tmp_path, "mae", 0) == 0.4
    over = Study(tmp_path, study.sizes, SHARDS, Hardware(), stop_at=0.0)
    [line] = run_all(over, [("mae", 1)], jobs=1)
    assert line.startswith("mae, seed 1: the time was over")
    assert chains(("mae", "scratch"), 2) == [
        ("scratch", 0),
        ("mae", 0),
        ("scratch", 1),
        ("mae", 1),
    ]


def test_differences_are_of_equal_seeds_with_students_interval(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    for seed, (scratch, sami) in enumerate([(0.50, 0.53), (0.52, 0.54), (0.51, 0.55)]):
        finish_chain(study, "scratch", seed, (scratch, 0.6), 0.2)
        finish_chain(study, "sami_teacher", seed, (sami, 0.6), 0.3)
    finish_chain(study, "sami_teacher", 3, (0.9, 0.9), 0.9)  # scratch is not done: no pair
    measured = {(d.images, d.measure): d for d in differences(students(tmp_path))}
    few = measured["few", "box"]
    assert few.spread.values == pytest.approx([0.03, 0.02, 0.04])
    assert few.interval() == pytest.approx(4.303 * 0.01 / 3**0.5)  # 0.0248
    assert few.verdict() == "ahead"
    assert measured["all", "box"].verdict() == "open"
    assert ("few", "probe") not in measured
    assert measured["all", "probe"].spread.values == pytest.approx([0.1, 0.1, 0.1])


def test_files_hold_what_is_done(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    plan = register(tmp_path, study.sizes, 5)
    finish(study, study.teacher_plan(), scores_of(0.6))
    check_teacher(study, train_teacher(study))
    finish_chain(study, "distill", 1, (0.5, 0.6), 0.4)
    finish(study, study.plan("few", "mae", 1), scores_of(0.5))  # its probe is not done
    content = json.loads(json.dumps(as_json(tmp_path, plan)))
    run = {"arm": "distill", "seed": 1, "box": 0.5, "click1": 0.3, "probe": 0.4}
    assert content["runs"] == [run | {"images": "few"}, run | {"images": "all", "box": 0.6}]
    assert content["teacher"] == {"box": 0.6, "filled_box": 0.5}
    write_markdown(tmp_path, plan, "a command", tmp_path / "results/m.md", ["a.png"])
    text = (tmp_path / "results/m.md").read_text()
    assert "| few | distill | 1 | 0.500 ± 0.000 | 0.300 ± 0.000 | 0.400 ± 0.000 |" in text
    assert "| all | distill | large | 10 | 0.600 | 0.300 | 0.500 | 0.500 | 0.900 |" in text
    assert "The students learned from 192x8_steps3000x8" in text
    assert read_scores(study.plan("few", "distill", 1).folder(tmp_path)) == scores_of(0.5)


def test_curves_are_means_over_the_seeds() -> None:
    records = [
        RunRecord("few", "mae", seed, 2, 4, {}, {BOX: {0: value, 2: 0.4}})
        for seed, value in enumerate((0.1, 0.3))
    ]
    assert mean_curves(records) == {"mae": pytest.approx({0: 0.2, 2: 0.4})}


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_arms_differ_in_the_target_only(device: str, tmp_path: Path) -> None:
    sizes = sizes_of(device, False, [])
    place, hardware = RunPlace(tmp_path, 3, "t.tar", "h.tar"), Hardware()
    configs = {
        arm: pretraining(arm, sizes, place, hardware, tmp_path / "teacher.safetensors")
        for arm in ARMS
        if arm != "scratch"
    }
    first = configs["mae"]
    for config in configs.values():
        for same in ("run", "data", "crop", "optim", "trainer"):
            assert getattr(config, same) == getattr(first, same)
        assert config.sami.student == first.sami.student
    assert configs["sami_random"].teacher.weights is None
    assert configs["sami_random"].sami == configs["sami_teacher"].sami
    assert configs["distill"].teacher == configs["sami_teacher"].teacher
    values = finetuning(sizes.student_shape(), sizes, sizes.few, place, hardware)
    assert finetuning_from(values, None).model.encoder is None
    assert finetuning_from(values, Path("e")).model.encoder == "e"


def test_unknown_arms_and_keys_are_named() -> None:
    assert arms_of("teacher") == ()
    assert arms_of("mae,scratch") == ("scratch", "mae")
    with pytest.raises(UserError, match=r"--only sami: choose from teacher,scratch"):
        arms_of("sami")
    with pytest.raises(UserError, match=r"teacher\.step"):
        sizes_of("cpu", False, ["teacher.step=3"])


def test_probe_separates_what_is_separable_and_gradient_vanishes() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    features = torch.randn(120, 4, generator=generator, dtype=torch.float64)
    features[:, 0] += 8.0 * labels
    train, heldout = standardised(features[:90], features[90:])
    assert linear_accuracy((train, labels[:90]), (heldout, labels[90:])) == 1.0
    weights = fitted(train, labels[:90], decay=0.1).requires_grad_(True)
    logits = train @ weights[:, :-1].T + weights[:, -1]
    loss = torch.nn.functional.cross_entropy(logits, labels[:90])
    (loss + 0.1 * weights[:, :-1].square().sum()).backward()
    assert weights.grad is not None
    assert float(weights.grad.abs().max()) < 1e-4
