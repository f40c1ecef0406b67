"""Runs of the stage: accumulation, ranks, resumption, scores, exported files, other categories."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from efficientsam_pl.config.load import ConfigError
from efficientsam_pl.data.categories import packed_categories
from efficientsam_pl.data.datasets.detection import DetectionDataset, WholeView
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import MASK_SUFFIXES
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.metrics.detection_ap import DetectionAp
from efficientsam_pl.export.consolidate import consolidate
from efficientsam_pl.inference.detections import detected_objects, to_image
from efficientsam_pl.inference.detector import load_detector
from efficientsam_pl.models.detection.detector import Detector
from efficientsam_pl.models.detection.weights import load_detector_file
from tests.recipes.detection.conftest import CATEGORIES, Run, write_shards
from tests.recipes.finished_runs import (
    assert_same_step,
    checkpoint,
    gradients,
    logged,
    run_alone,
    run_pair,
)

ONE_STEP = ("trainer.max_steps=2", "trainer.checkpoint_every_steps=1", "trainer.ema_decay=0.5")
UNVALIDATED = "trainer.validate_every_steps=100"
TWO = ("trainer.micro_batch=2", "trainer.devices=2", "trainer.validate_every_steps=2")
WAYS = {
    "ddp": ("trainer.strategy=ddp",),
    "fsdp": ("trainer.strategy=fsdp", "trainer.activations=recomputed"),
}
SCORES = ("box_ap", "box_ap50", "mask_ap", "mask_ap50", "loss")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("detect") / "alone"


@pytest.fixture
def one(alone: Path, detect: Run) -> Path:
    """A run of one process."""
    if not alone.exists():
        detect(alone, *ONE_STEP, UNVALIDATED)
    return alone


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_accumulated_step_is_that_of_the_whole_batch(
    micro_batch: int, one: Path, detect: Run, tmp_path: Path
) -> None:
    """With corrupt images, images without objects, drop path and jitter."""
    detect(
        tmp_path / "run",
        *ONE_STEP,
        UNVALIDATED,
        f"trainer.micro_batch={micro_batch}",
        "trainer.activations=recomputed",
    )
    assert_same_step(tmp_path / "run", one)


@pytest.mark.slow
def test_step_of_compiled_blocks_is_that_of_the_plain_program(
    one: Path, annotated: Path, tiny: Path, tmp_path: Path
) -> None:
    keys = (f"data.train={annotated}/train/*.tar", f"run.dir={tmp_path}/run", *ONE_STEP)
    run_alone("detect", str(tiny), "-", *keys, UNVALIDATED, "trainer.compile=blocks")
    measured, expected = gradients(tmp_path / "run"), gradients(one)
    assert float((measured - expected).norm() / expected.norm()) < 1e-5


def test_resumed_run_is_the_uninterrupted_one_to_the_bit(detect: Run, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    detect(whole, UNVALIDATED)
    detect(cut, UNVALIDATED, stop_after=2)
    detect(cut, UNVALIDATED)
    expected, resumed = (checkpoint(folder, 4)["state_dict"] for folder in (whole, cut))
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        assert torch.equal(resumed[name], value), name


def test_a_run_logs_what_its_files_score_and_draws(
    detect: Run, annotated: Path, tmp_path: Path
) -> None:
    """The file under detectron2's names is the same model as ours, and gives the logged AP."""
    result = detect(
        tmp_path / "run",
        "trainer.max_steps=2",
        "trainer.ema_decay=0.5",
        "trainer.visualized_images=3",
        "model.regions.score_threshold=0",
    )
    assert (tmp_path / "run/pictures/step-00000002.png").is_file()
    consolidate(result.checkpoint, tmp_path / "ours.safetensors")
    consolidate(result.checkpoint, tmp_path / "theirs.pt")
    model = load_detector(str(tmp_path / "ours.safetensors"))
    assert model.config.labels == ("red", "blue")
    assert model.config.category_ids == (3, 7)
    names = torch.load(tmp_path / "theirs.pt")["model"]
    assert {"backbone.net.pos_embed", "roi_heads.mask_head.mask_fcn1.norm.bias"} <= names.keys()
    again = Detector(model.config).eval()
    load_detector_file(again, str(tmp_path / "theirs.pt"))

    shards = open_shards(f"{annotated}/heldout/*.tar")
    categories = packed_categories(shards, "data.heldout")
    dataset = DetectionDataset(SampleReader([shards], MASK_SUFFIXES), WholeView(64), categories, 0)
    batch = dataset.collate(dataset.__getitems__([SampleRef(0, n) for n in range(len(shards))]))
    metric = DetectionAp(2)
    found = again.detect(batch.image, batch.content_hw)
    for n, truth in enumerate(batch.annotations):
        if truth is not None:
            height, width = batch.content_hw[n].tolist()
            at_image = to_image(found[n], (height, width), truth.image_hw)
            metric.update(batch.key[n], truth, detected_objects(at_image, truth.image_hw))
    scores, metrics = metric.compute(), logged(tmp_path / "run")
    assert metrics["heldout/photos"] == 4
    assert scores.box.ap50 > 0
    assert metrics["heldout/box_ap"] == pytest.approx(scores.box.ap, rel=1e-4)
    assert metrics["heldout/mask_ap50"] == pytest.approx(scores.mask.ap50, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (CATEGORIES[::-1], r"data\.heldout: its shards have other categories .* class 0 is 'blue'"),
        ([], r"data\.heldout: the shards of .* have no categories"),
    ],
)
def test_other_categories_of_held_out_shards_are_named(
    categories: list[dict[str, object]], message: str, detect: Run, tmp_path: Path,
    tar_of: Callable[..., Path],
) -> None:  # fmt: skip
    write_shards(tmp_path / "other", tar_of, categories)
    with pytest.raises(UserError, match=message):
        detect(tmp_path / "run", f"data.heldout={tmp_path}/other/heldout/*.tar")


def test_a_file_of_other_classes_is_named(
    detect: Run, tmp_path: Path, tar_of: Callable[..., Path]
) -> None:
    result = detect(tmp_path / "run", "trainer.max_steps=2", UNVALIDATED)
    file = tmp_path / "detector.safetensors"
    consolidate(result.checkpoint, file)
    write_shards(tmp_path / "other", tar_of, [CATEGORIES[0], {"id": 8, "name": "green"}])
    other = [f"data.{s}={tmp_path}/other/{s}/*.tar" for s in ("train", "heldout")]
    with pytest.raises(UserError, match=r"class 1 is 'blue' there and 'green' here; model\.enc"):
        detect(tmp_path / "again", *other, f"model.weights={file}")
    write_shards(tmp_path / "more", tar_of, [*CATEGORIES, {"id": 8, "name": "green"}])
    more = [f"data.{s}={tmp_path}/more/{s}/*.tar" for s in ("train", "heldout")]
    with pytest.raises(UserError, match=r"head of 2 classes, the number of categories .* is 3"):
        detect(tmp_path / "again", *more, f"model.weights={file}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.compile=step", "trainer.compile=step cannot capture a detector's step"),
        ("model.vit.class_token=true", r"class_token=true needs model\.vit\.global_attention=all"),
        ("optim.milestones=[2,9]", r"optim\.milestones=\[2, 9\] must be below trainer\.max_ste"),
    ],
)
def test_settings_that_contradict_are_refused(
    override: str, message: str, detect: Run, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        detect(tmp_path / "run", override)


@pytest.fixture(scope="module")
def pair(annotated: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on two ranks in several ways, in one pair of processes."""
    home = tmp_path_factory.mktemp("pair")
    paths = (f"data.train={annotated}/train/*.tar", f"data.heldout={annotated}/heldout/*.tar")
    keys = (*paths, *ONE_STEP, *TWO)
    run_pair(
        *(["detect", str(tiny), "-", f"run.dir={home}/{way}", *keys, *WAYS[way]] for way in WAYS)
    )
    return home


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_take_the_step_of_one_and_score_each_image_once(
    way: str, pair: Path, one: Path, detect: Run, tmp_path: Path
) -> None:
    assert_same_step(pair / way, one)
    detect(tmp_path / "single", *ONE_STEP, "trainer.validate_every_steps=2")
    measured, expected = logged(pair / way), logged(tmp_path / "single")
    assert measured["heldout/photos"] == 4
    for name in SCORES:
        assert measured[f"heldout/{name}"] == pytest.approx(expected[f"heldout/{name}"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_run_of_two_ranks_resumes_on_one(
    way: str, pair: Path, detect: Run, tmp_path: Path
) -> None:
    detect(tmp_path, *ONE_STEP, UNVALIDATED, f"run.resume={pair}/{way}/checkpoints/step-00000001")
    resumed, straight = (
        torch.cat([v.flatten() for _, v in sorted(checkpoint(at, 2)["state_dict"].items())])
        for at in (tmp_path, pair / way)
    )
    assert float((resumed - straight).norm() / straight.norm()) < 1e-4
