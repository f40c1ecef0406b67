"""Real processes over gloo: DDP, FSDP2 and accumulation take the step that one process takes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from efficientsam_pl.checkpoints.form import joined
from efficientsam_pl.checkpoints.stored import StoredCheckpoint
from efficientsam_pl.export.consolidate import consolidate
from efficientsam_pl.models.weights import read_weights

Start = Callable[..., Path]
STAGES = ("pretrain", "finetune", "interactive")
WAYS = {
    "accumulated": ["trainer.micro_batch=2"],
    "ddp": ["trainer.strategy=ddp", "trainer.devices=2", "trainer.micro_batch=2"],
    "fsdp": [
        "trainer.strategy=fsdp",
        "trainer.devices=2",
        "trainer.micro_batch=2",
        "teacher.sharding=sharded",
    ],
}


@pytest.fixture(scope="module")
def start(
    tmp_path_factory: pytest.TempPathFactory, shards: Path, model_file: Path, stage_files: Any
) -> Start:
    """Runs a stage once in processes of its own, on photos of which three in ten are broken."""
    home = tmp_path_factory.mktemp("engine")
    damaged = home / "shards"
    damaged.mkdir()
    for path in shards.glob("train-*.tar"):
        data = bytearray(path.read_bytes())
        if path.name == "train-000000.tar":
            starts = [i for i in range(0, len(data), 512) if data[i : i + 3] == b"\xff\xd8\xff"]
            for begin in starts[:3]:
                data[begin : begin + 2] = b"\x00\x00"
        (damaged / path.name).write_bytes(bytes(data))

    def run(stage: str, name: str, *overrides: str, counted: bool = False) -> Path:
        folder = home / f"{stage}-{name}"
        own = [f"model.name={model_file}"] if stage == "finetune" else []
        command_name = "pretrain" if stage == "pretrain" else "finetune"
        given = [o for o in overrides if stage == "pretrain" or not o.startswith("teacher.")]
        command = [sys.executable, str(Path(__file__).with_name("one_run.py")), command_name]
        counts = f"{folder}.counts.json" if counted else "-"
        command += [str(stage_files[stage]), counts, f"run.dir={folder}"]
        command += [f"data.train={damaged}/train-*.tar", f"data.heldout={shards}/heldout-*.tar"]
        command += ["data.max_bad_fraction=1", "trainer.global_batch=8", "trainer.micro_batch=8"]
        command += ["optim.peak_lr=1e-3", "trainer.max_steps=2", *own, *given]
        command += ["trainer.checkpoint_every_steps=1"]
        places = [str(Path(__file__).parents[2]), *sys.path[1:]]
        done = subprocess.run(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return folder

    return run


@pytest.fixture(scope="module")
def alone(start: Start) -> dict[str, Path]:
    return {stage: start(stage, "alone") for stage in STAGES}


def checkpoint(folder: Path, step: int) -> dict[str, Any]:
    stored = StoredCheckpoint(folder / f"checkpoints/step-{step:08d}")
    return joined(stored.whole_state(), stored.values)


def gradients(folder: Path, beta: float) -> dict[str, Tensor]:
    """The first step's by parameter, out of Adam's first moments."""
    state = checkpoint(folder, 1)["optimizer_states"][0]["state"]
    return {name: state[name]["exp_avg"] / (1 - beta) for name in state}


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference of all tensors together over that of the expected."""
    apart, whole = (
        torch.cat([tensor.flatten() for tensor in tensors])
        for tensors in ([found[name] - expected[name] for name in expected], expected.values())
    )
    return float(apart.norm() / whole.norm())


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("way", WAYS)
def test_step_is_that_of_one_process(
    stage: str, way: str, start: Start, alone: dict[str, Path]
) -> None:
    """Photos are broken and have one to three masks: unequally many to average over."""
    folder = start(stage, way, *WAYS[way])
    beta = 0.95 if stage == "pretrain" else 0.9
    expected = gradients(alone[stage], beta)
    assert any(gradient.any() for gradient in expected.values())
    found = gradients(folder, beta)
    assert found.keys() == expected.keys()
    assert difference(found, expected) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_gradients_travel_once_a_step(stage: str, way: str, start: Start) -> None:
    """Four micro-batches a step: the first three stay on their rank."""
    folder = start(stage, f"{way}-four", *WAYS[way], "trainer.micro_batch=1", counted=True)
    counts = json.loads(Path(f"{folder}.counts.json").read_text())
    assert len(counts) == 8
    reductions = [sum(n for name, n in one.items() if "reduce" in name) for one in counts]
    assert reductions[:3] == reductions[4:7] == [0, 0, 0]
    assert reductions[3] > 0
    assert reductions[7] > 0


@pytest.mark.slow
def test_sharded_run_goes_on_in_one_process_and_back(start: Start) -> None:
    legs = [(WAYS["fsdp"], 2), (["trainer.micro_batch=4"], 4), (WAYS["fsdp"], 6)]
    for way, steps in legs:
        folder = start("pretrain", "elastic", *way, f"trainer.max_steps={steps}")
        start("pretrain", "straight", f"trainer.max_steps={steps}")
    straight = folder.with_name("pretrain-straight")
    for step in (4, 6):
        one, other = (
            {
                name: own["exp_avg"]
                for name, own in checkpoint(at, step)["optimizer_states"][0]["state"].items()
            }
            for at in (folder, straight)
        )
        assert difference(one, other) < 1e-2  # each weight goes on with its own moments
    # where a gradient is nothing but rounding, Adam's steps are as large as elsewhere
    assert difference(*(checkpoint(at, 6)["state_dict"] for at in (folder, straight))) < 1e-2


@pytest.mark.slow
def test_half_precision_computes_alike_whole_and_sharded(start: Start) -> None:
    """Gathered in bfloat16 or cast to it by autocast: the same numbers are multiplied."""
    half = ["trainer.precision=bf16", "teacher.precision=bf16", "trainer.ema_decay=0.9"]
    half += ["trainer.activations=recomputed"]
    whole = start("pretrain", "half", *half)
    sharded = start("pretrain", "half-sharded", *WAYS["fsdp"], *half)
    single = gradients(whole, 0.95)
    found = gradients(sharded, 0.95)
    for name, gradient in single.items():
        error = (found[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert float(error) < 0.02, name  # bfloat16 keeps 8 bits
    one, other = (checkpoint(at, 2)["state_dict"] for at in (whole, sharded))
    assert one.keys() == other.keys()
    assert all(tensor.dtype == torch.float32 for tensor in other.values())
    out = sharded / "again.safetensors"
    consolidate(sharded / "checkpoints/step-00000002", out)
    state = read_weights(str(out)).state
    for name, tensor in state.items():
        average = name.replace("image_encoder.trunk.", "average.encoder.")
        assert torch.equal(tensor, other[average])


@pytest.mark.slow
def test_compiled_blocks_compute_what_the_others_do(start: Start, alone: dict[str, Path]) -> None:
    all_at_once = [*WAYS["fsdp"], "trainer.activations=recomputed", "trainer.ema_decay=0.9"]
    compiled = start("pretrain", "compiled", *all_at_once, "trainer.compile=blocks")
    found, expected = (gradients(at, 0.95) for at in (compiled, alone["pretrain"]))
    assert difference(found, expected) <= 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
def test_gpu_computes_in_half_precision_what_a_processor_does(
    strategy: str, start: Start, alone: dict[str, Path]
) -> None:
    folder = start(
        "pretrain",
        f"gpu-{strategy}",
        *("trainer.accelerator=gpu", "trainer.precision=bf16", "trainer.compile=blocks"),
        f"trainer.strategy={strategy}",
    )
    found = gradients(folder, 0.95)
    for name, gradient in gradients(alone["pretrain"], 0.95).items():
        error = (found[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert float(error) < 0.05, name  # bfloat16 keeps 8 bits
