"""The skeleton takes a stage of which it knows nothing: toy_recipe.py and no other file."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from efficientsam_pl.checkpoints.reader import CheckpointReader
from efficientsam_pl.checkpoints.state import join_state
from efficientsam_pl.export.consolidate import consolidate
from efficientsam_pl.models.weights import read_weights

PROGRAM = Path(__file__).with_name("toy_recipe.py")
CONFIG = (
    *("trainer.accelerator=cpu", "trainer.max_steps=6", "trainer.global_batch=4"),
    *("trainer.micro_batch=2", "trainer.checkpoint_every_steps=3", "optim.warmup_steps=1"),
    *("trainer.validate_every_steps=3", "trainer.best_metric=heldout/loss"),
    *("optim.peak_lr=1e-3", "data.workers=0"),
)


def start(shards: Path, folder: Path, *overrides: str, rank: int | None = None, port: int = 0):  # type: ignore[no-untyped-def]
    """Start a rank of torchrun, or one process that starts its own ranks."""
    launch = {}
    if rank is not None:
        launch = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        launch |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        launch |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    data = (f"data.train={shards}/train-*.tar", f"data.heldout={shards}/heldout-*.tar")
    places = os.pathsep.join([str(PROGRAM.parents[2]), *sys.path[1:]])
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), f"run.dir={folder}", *data, *CONFIG, *overrides],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": places} | launch,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(*ranks: "subprocess.Popen[str]") -> str:
    """Wait for the ranks of a run; return what rank 0 has printed."""
    try:
        outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [rank.returncode for rank in ranks] == [0] * len(ranks), "\n".join(outputs)
    return outputs[0]


def run_alone(shards: Path, folder: Path, *overrides: str) -> str:
    return end(start(shards, folder, *overrides))


def run_pair(shards: Path, folder: Path, strategy: str, *overrides: str) -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = (f"trainer.strategy={strategy}", *overrides)
    return end(*(start(shards, folder, *given, rank=rank, port=port) for rank in range(2)))


def weights(folder: Path, step: int = 6) -> dict[str, Tensor]:
    stored = CheckpointReader(folder / f"checkpoints/step-{step:08d}")
    state: dict[str, Tensor] = join_state(stored.load_all(), stored.values)["state_dict"]
    return state


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "alone"
    assert "weights: from scratch (seed 0)" in run_alone(shards, folder)
    return folder


def test_stage_learns_keeps_its_best_and_exports_its_whole_model(
    alone: Path, tmp_path: Path
) -> None:
    first, last = (CheckpointReader(alone / f"checkpoints/step-0000000{n}") for n in (3, 6))
    losses = [
        reader.values["callbacks"]["LossHistory"]["heldout"][-1][1] for reader in (first, last)
    ]
    assert losses[1] < losses[0]
    assert (alone / "best").read_text().strip() == "checkpoints/step-00000006"
    consolidate(last.folder, tmp_path / "toy.safetensors")
    exported = read_weights(str(tmp_path / "toy.safetensors")).state
    assert exported.keys() == {name.removeprefix("model.") for name in weights(alone)}


def test_resumed_stage_is_the_uninterrupted_one_to_the_bit(
    alone: Path, shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "resumed"
    begun = f"run.resume={alone}/checkpoints/step-00000003"
    output = run_alone(shards, folder, begun)
    assert re.search(r"weights: all from .*step-00000003, step 3", " ".join(output.split()))
    expected, found = weights(alone), weights(folder)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_checkpoint_of_another_model_is_refused(alone: Path, shards: Path, tmp_path: Path) -> None:
    begun = f"run.resume={alone}/checkpoints/step-00000003"
    rank = start(shards, tmp_path / "other", begun, "model.width=16")
    output = rank.communicate(timeout=300)[0]
    assert rank.returncode == 1
    assert "is of another model: model.width was 24, now 16" in " ".join(output.split())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_take_the_steps_of_one_and_resume_to_the_bit(
    strategy: str, alone: Path, shards: Path, tmp_path: Path
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_pair(shards, whole, strategy)
    expected, found = weights(alone), weights(whole)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
    run_pair(shards, resumed, strategy, f"run.resume={whole}/checkpoints/step-00000003")
    for name, value in weights(resumed).items():
        assert torch.equal(value, found[name]), name
