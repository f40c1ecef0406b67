"""Runs of the stage: accumulation, ranks, resumption, the mean IoU, exported files, mistakes."""

from pathlib import Path

import pytest
import torch

from efficientsam_pl.errors import UserError
from efficientsam_pl.export.consolidate import consolidate
from efficientsam_pl.models.weights import read_weights
from tests.recipes.finished_runs import assert_same_step, checkpoint, logged, run_pair
from tests.recipes.semantic.conftest import CLASSES, Run

ONE_STEP = ("trainer.max_steps=2", "trainer.checkpoint_every_steps=1", "trainer.ema_decay=0.5")
TWO = ("trainer.micro_batch=1", "trainer.devices=2")
WAYS = {"ddp": ("trainer.strategy=ddp",), "fsdp": ("trainer.strategy=fsdp",)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("semantic") / "alone"


@pytest.fixture
def one(alone: Path, semantic: Run) -> Path:
    """A run of one process."""
    if not alone.exists():
        semantic(alone, *ONE_STEP)
    return alone


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_accumulated_step_is_that_of_the_whole_batch(
    micro_batch: int, one: Path, semantic: Run, tmp_path: Path
) -> None:
    """With a damaged image, one without a labelled pixel, drop path and sampled points."""
    semantic(tmp_path / "run", *ONE_STEP, f"trainer.micro_batch={micro_batch}")
    assert_same_step(tmp_path / "run", one)


def test_resumed_run_is_the_uninterrupted_one_to_the_bit(semantic: Run, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    accumulated = "trainer.micro_batch=2"
    semantic(whole, accumulated)
    semantic(cut, accumulated, stop_after=2)
    semantic(cut, accumulated, "data.workers=1")
    expected, resumed = (checkpoint(folder, 4)["state_dict"] for folder in (whole, cut))
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        assert torch.equal(resumed[name], value), name


@pytest.mark.slow
def test_it_learns_stripes_and_its_file_is_a_segmenter(semantic: Run, tmp_path: Path) -> None:
    longer = ("trainer.max_steps=40", "trainer.validate_every_steps=40", "trainer.ema_decay=0.5")
    plain = ("model.drop_path=0", "optim.clip_norm=1", "optim.backbone_multiplier=1")
    saved = ("trainer.checkpoint_every_steps=40", "trainer.visualized_images=2")
    result = semantic(tmp_path / "run", *longer, *plain, *saved)
    assert logged(tmp_path / "run")["heldout/photos"] == 4
    assert logged(tmp_path / "run")["heldout/miou"] > 0.5
    assert (tmp_path / "run/pictures/step-00000040.png").is_file()
    assert (tmp_path / "run/best").read_text().strip() == "checkpoints/step-00000040"
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.pt"
    for out in (ours, theirs):
        consolidate(result.checkpoint, out)
    file = read_weights(ours)
    assert file.config is not None
    assert tuple(file.config["labels"]) == CLASSES
    names = torch.load(theirs)["model"].keys()
    assert {"backbone.net.pos_embed", "sem_seg_head.predictor.query_feat.weight"} <= names
    again = semantic(tmp_path / "again", "trainer.max_steps=1", f"model.weights={theirs}")
    assert again.checkpoint.name == "step-00000001"


def test_files_and_sets_of_other_classes_are_refused(
    semantic: Run, scenes: Path, tmp_path: Path
) -> None:
    result = semantic(tmp_path / "run", "trainer.max_steps=1")
    consolidate(result.checkpoint, tmp_path / "file.safetensors")
    weights = f"model.weights={tmp_path}/file.safetensors"
    names = tmp_path / "names.txt"
    names.write_text("grass\nlake\nwall\n")
    with pytest.raises(UserError, match=r"its class 1 is sea, that of data\.train lake"):
        semantic(tmp_path / "other", weights, f"labels.names={names}")
    with pytest.raises(UserError, match=r"model\.classes=4, but the record of `pack` .* lists 3"):
        semantic(tmp_path / "four", "model.classes=4")
    with pytest.raises(UserError, match=r"trainer\.compile=step cannot capture .*=regions"):
        semantic(tmp_path / "step", "trainer.compile=step")


@pytest.fixture(scope="module")
def pair(scenes: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on two ranks in several ways, in one pair of processes."""
    home = tmp_path_factory.mktemp("pair")
    paths = (f"data.train={scenes}/train/*.tar", f"data.heldout={scenes}/heldout/*.tar")
    keys = (*paths, *ONE_STEP, *TWO)
    run_pair(
        *(["semantic", str(tiny), "-", f"run.dir={home}/{way}", *keys, *WAYS[way]] for way in WAYS)
    )
    return home


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_take_the_step_of_one_and_count_each_image_once(
    way: str, pair: Path, one: Path
) -> None:
    assert_same_step(pair / way, one)
    found, expected = logged(pair / way), logged(one)
    assert found["heldout/photos"] == 4
    for name in ("heldout/miou", "heldout/loss"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5), name
