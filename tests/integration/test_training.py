"""`pretrain`, `finetune` and `consolidate`: a run to a model, and runs that cannot begin."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from tests.integration.conftest import InProcess, OwnProcess, TinyModel


@pytest.mark.parametrize(
    ("command", "overrides", "named"),
    [
        ("pretrain", [], "data.train="),
        ("pretrain", ["data.train=/nowhere/*.tar"], "/nowhere/*.tar"),
        ("pretrain", ["data.train={shards}/*.tar", "teacher.weights=gone.pth"], "gone.pth"),
        pytest.param(
            "pretrain",
            ["-c", "cluster/1x8", "data.train={shards}/*.tar"],
            "trainer.devices=8",
            marks=pytest.mark.skipif(torch.cuda.device_count() >= 8, reason="eight GPUs are here"),
        ),
        ("finetune", [], "data.train="),
        ("finetune", ["data.train=/nowhere/*.tar", "model.name={model}"], "/nowhere/*.tar"),
        ("finetune", ["data.train={shards}/*.tar", "model.weights=gone.pt"], "gone.pt"),
        ("finetune", ["data.train={shards}/*.tar", "model.name=sam_vit_z"], "sam_vit_z"),
        ("finetune", ["data.train={shards}/*.tar", "run.dir={model}"], "tiny.yaml"),
    ],
)
def test_run_that_cannot_begin_names_the_reason(
    command: str,
    overrides: list[str],
    named: str,
    tiny: "TinyModel",
    shards: Path,
    tmp_path: Path,
    here: "InProcess",
) -> None:
    rest = [override.format(shards=shards, model=tiny.model) for override in overrides]
    assert named in here.mistake(command, *rest, folder=tmp_path)


def test_training_from_the_command_line_ends_in_a_model_that_predicts(
    tiny: "TinyModel", shards: Path, tmp_path: Path, here: "InProcess", process: "OwnProcess"
) -> None:
    options = (
        f"data.train={shards}/set-000000.tar",
        f"model.name={tiny.model}",
        "masks.masks_per_image=2",
        f"run.dir={tmp_path / 'run'}",
    )
    process.done("finetune", "-c", "finetune/ti", "-c", "debug/cpu", *options)
    out = tmp_path / "model.safetensors"
    assert "model.safetensors" in here.done("consolidate", tmp_path / "run", out)
    here.done(*tiny.predict("--point", "20,20", weights=out, out=tmp_path / "masks"))
    assert [path.name for path in (tmp_path / "masks").glob("mask_*.png")] == ["mask_0.png"]


@pytest.mark.parametrize("name", ["gone.ckpt", "text.txt", "garbage.pt", "other.pt", "."])
def test_consolidating_what_is_no_checkpoint_names_it(
    name: str, tiny: "TinyModel", tmp_path: Path, here: "InProcess"
) -> None:
    line = here.mistake("consolidate", name, tmp_path / "out.safetensors", folder=tiny.folder)
    assert name in line
    assert "checkpoint" in line
    assert list(tmp_path.iterdir()) == []


def test_other_patch_sizes_and_crops_are_trained_scored_and_predicted(
    tiny: "TinyModel", shards: Path, tmp_path: Path, here: "InProcess"
) -> None:
    """The grid of the loss is that of the model's logits, four times its tokens."""
    model = tmp_path / "fine.yaml"
    model.write_text(
        tiny.model.read_text().replace("position_grid", "patch_size: 8, position_grid")
    )
    shard, out = shards / "set-000000.tar", tmp_path / "fine.safetensors"
    heldout = shutil.copy(shard, tmp_path / "heldout.tar")
    options = ("masks.masks_per_image=2", "masks.crop.min_area=0.5", f"run.dir={tmp_path / 'run'}")
    here.done(
        *("finetune", "-c", "debug/cpu", f"data.train={shard}", f"data.heldout={heldout}"),
        *("data.workers=0", f"model.name={model}", *options),
    )
    here.done("consolidate", tmp_path / "run", out)
    npz = tmp_path / "out.npz"
    here.done(*tiny.predict("--point", "20,20", "--npz", npz, weights=out, out=tmp_path / "masks"))
    with np.load(npz) as arrays:
        assert arrays["low_res_logits"].shape[-2:] == (32, 32)  # of 64 pixels
