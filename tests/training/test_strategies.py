"""Real processes over gloo: DDP, FSDP2 and accumulation take the step of a single process."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from efficientsam_pl.checkpoints.reader import CheckpointReader
from efficientsam_pl.checkpoints.state import join_state
from efficientsam_pl.cli import main as cli
from efficientsam_pl.export.consolidate import consolidate
from efficientsam_pl.models.weights import read_weights

STAGES = ("pretrain", "finetune", "interactive")
TWO = ["trainer.devices=2", "trainer.micro_batch=2"]
WAYS = {
    "ddp": ["trainer.strategy=ddp", *TWO],
    "fsdp": ["trainer.strategy=fsdp", *TWO, "teacher.sharding=sharded"],
}
HALF = ["trainer.precision=bf16", "teacher.precision=bf16", "trainer.ema_decay=0.9"]
HALF += ["trainer.activations=recomputed"]
COMPILED = ["trainer.activations=recomputed", "trainer.ema_decay=0.9", "trainer.compile=regions"]


@dataclass(frozen=True)
class Engine:
    """Runs of the stages on images of which three in ten are corrupt."""

    home: Path
    shards: Path
    model_file: Path
    stage_files: dict[str, Path]

    def folder(self, stage: str, name: str) -> Path:
        return self.home / f"{stage}-{name}"

    def counts(self, stage: str, name: str) -> Path:
        return self.home / f"{stage}-{name}.counts.json"

    def arguments(self, stage: str, name: str, *overrides: str, counted: bool = False) -> list[str]:
        """Arguments of one_run.py."""
        model = [f"model.name={self.model_file}"] if stage == "finetune" else []
        given = [o for o in overrides if stage == "pretrain" or not o.startswith("teacher.")]
        counts = str(self.counts(stage, name)) if counted else "-"
        return [
            *("pretrain" if stage == "pretrain" else "finetune", str(self.stage_files[stage])),
            *(counts, f"run.dir={self.folder(stage, name)}"),
            f"data.train={self.home}/shards/train-*.tar",
            f"data.heldout={self.shards}/heldout-*.tar",
            *("data.max_bad_fraction=1", "trainer.global_batch=8", "trainer.micro_batch=8"),
            *("optim.peak_lr=1e-3", "trainer.max_steps=2", "trainer.checkpoint_every_steps=1"),
            *model,
            *given,
        ]

    def here(self, stage: str, name: str, *overrides: str) -> Path:
        """Run in this process."""
        command, file, _, *given = self.arguments(stage, name, *overrides)
        assert cli.main([command, "-c", file, *given]) == 0
        return self.folder(stage, name)

    def elsewhere(self, *runs: list[str]) -> None:
        """Run several, one after the other, in a process of their own."""
        self._ended([self._started(runs, {})])

    def pair(self, *runs: list[str]) -> None:
        """Run several, one after the other, in two processes as torchrun starts them."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        common |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
        self._ended([self._started(runs, common | rank) for rank in ranks])

    def _started(
        self, runs: tuple[list[str], ...], launch: dict[str, str]
    ) -> subprocess.Popen[str]:
        arguments = [part for run in runs for part in ("--", *run)]
        places = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path[1:]])
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("one_run.py")), *arguments],
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTHONPATH": places}
            | launch,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _ended(self, ranks: list[subprocess.Popen[str]]) -> None:
        try:
            errors = [rank.communicate(timeout=600)[1] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()  # an unreaped process is a warning in another test
                if rank.stderr is not None:
                    rank.stderr.close()
        assert [rank.returncode for rank in ranks] == [0] * len(ranks), "\n".join(
            error[-3000:] for error in errors
        )


@pytest.fixture(scope="module")
def engine(
    tmp_path_factory: pytest.TempPathFactory, shards: Path, model_file: Path, stage_files: Any
) -> Engine:
    home = tmp_path_factory.mktemp("engine")
    corrupt = home / "shards"
    corrupt.mkdir()
    for path in shards.glob("train-*.tar"):
        data = bytearray(path.read_bytes())
        if path.name == "train-000000.tar":
            starts = [i for i in range(0, len(data), 512) if data[i : i + 3] == b"\xff\xd8\xff"]
            for begin in starts[:3]:
                data[begin : begin + 2] = b"\x00\x00"
        (corrupt / path.name).write_bytes(bytes(data))
    return Engine(home, shards, model_file, stage_files)


@pytest.fixture(scope="module")
def alone(engine: Engine) -> dict[str, Path]:
    return {stage: engine.here(stage, "alone") for stage in STAGES}


@pytest.fixture(scope="module")
def ranks(engine: Engine) -> Engine:
    """All runs of two ranks, in the same two processes; the compiled run is the last."""
    ways = WAYS.items()
    runs = [engine.arguments(stage, way, *keys) for stage in STAGES for way, keys in ways]
    runs += [
        engine.arguments(stage, f"{way}-four", *keys, "trainer.micro_batch=1", counted=True)
        for stage in ("pretrain", "finetune")
        for way, keys in ways
    ]
    for name, more in (("half", HALF), ("elastic", []), ("compiled", COMPILED)):
        runs.append(engine.arguments("pretrain", name, *WAYS["fsdp"], *more))
    engine.pair(*runs)
    return engine


def checkpoint(folder: Path, step: int) -> dict[str, Any]:
    stored = CheckpointReader(folder / f"checkpoints/step-{step:08d}")
    return join_state(stored.load_all(), stored.values)


def gradients(folder: Path, beta: float) -> dict[str, Tensor]:
    """Gradients of the first step by parameter, from Adam's first moments."""
    state = checkpoint(folder, 1)["optimizer_states"][0]["state"]
    return {name: state[name]["exp_avg"] / (1 - beta) for name in state}


def difference(measured: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference of all tensors together over that of the expected."""
    apart, whole = (
        torch.cat([tensor.flatten() for tensor in tensors])
        for tensors in ([measured[name] - expected[name] for name in expected], expected.values())
    )
    return float(apart.norm() / whole.norm())


def assert_same_step(folder: Path, alone: Path) -> None:
    beta = 0.95 if alone.name.startswith("pretrain") else 0.9
    expected = gradients(alone, beta)
    assert any(gradient.any() for gradient in expected.values())
    measured = gradients(folder, beta)
    assert measured.keys() == expected.keys()
    assert difference(measured, expected) <= 1e-6


@pytest.mark.parametrize("stage", STAGES)
def test_accumulated_step_is_that_of_the_whole_batch(
    stage: str, engine: Engine, alone: dict[str, Path]
) -> None:
    """Corrupt images, and one to three masks an image: unequal counts to average over."""
    folder = engine.here(stage, "accumulated", "trainer.micro_batch=2")
    assert_same_step(folder, alone[stage])


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("way", WAYS)
def test_step_is_that_of_one_process(
    stage: str, way: str, ranks: Engine, alone: dict[str, Path]
) -> None:
    assert_same_step(ranks.folder(stage, way), alone[stage])


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_gradients_travel_once_a_step(stage: str, way: str, ranks: Engine) -> None:
    """Four micro-batches a step: the first three stay on their rank."""
    counts = json.loads(ranks.counts(stage, f"{way}-four").read_text())
    assert len(counts) == 8
    reductions = [sum(n for name, n in calls.items() if "reduce" in name) for calls in counts]
    assert reductions[:3] == reductions[4:7] == [0, 0, 0]
    assert reductions[3] > 0
    assert reductions[7] > 0


@pytest.mark.slow
def test_finetuning_gathers_twice_a_micro_batch(ranks: Engine) -> None:
    """A block and the rest of the model, forward and backward; none in the rounds of prompts."""
    counts = json.loads(ranks.counts("finetune", "fsdp-four").read_text())
    assert [calls["all_gather"] for calls in counts] == 8 * [2 * 2]


@pytest.mark.slow
def test_sharded_run_resumes_in_a_single_process_and_back(ranks: Engine) -> None:
    """Its first two steps are the pair's."""
    for steps in (2, 4, 6):
        straight = ranks.here("pretrain", "straight", f"trainer.max_steps={steps}")
    folder = ranks.here("pretrain", "elastic", "trainer.micro_batch=4", "trainer.max_steps=4")
    ranks.pair(ranks.arguments("pretrain", "elastic", *WAYS["fsdp"], "trainer.max_steps=6"))
    for step in (4, 6):
        resumed, expected = (
            {
                name: state["exp_avg"]
                for name, state in checkpoint(at, step)["optimizer_states"][0]["state"].items()
            }
            for at in (folder, straight)
        )
        assert difference(resumed, expected) < 1e-2  # each weight keeps its own moments
    # where a gradient is mere rounding, Adam's steps are as large as elsewhere
    assert difference(*(checkpoint(at, 6)["state_dict"] for at in (folder, straight))) < 1e-2


@pytest.mark.slow
def test_half_precision_computes_the_same_whole_and_sharded(ranks: Engine) -> None:
    """Gathered in bfloat16 or cast to it by autocast: the same numbers are multiplied."""
    whole, sharded = ranks.here("pretrain", "half-whole", *HALF), ranks.folder("pretrain", "half")
    single = gradients(whole, 0.95)
    measured = gradients(sharded, 0.95)
    for name, gradient in single.items():
        error = (measured[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert float(error) < 0.02, name  # bfloat16 keeps 8 bits
    of_single, of_sharded = (checkpoint(at, 2)["state_dict"] for at in (whole, sharded))
    assert of_single.keys() == of_sharded.keys()
    assert all(tensor.dtype == torch.float32 for tensor in of_sharded.values())
    out = sharded / "consolidated.safetensors"
    consolidate(sharded / "checkpoints/step-00000002", out)
    state = read_weights(str(out)).state
    for name, tensor in state.items():
        average = name.replace("image_encoder.trunk.", "average.encoder.")
        assert torch.equal(tensor, of_sharded[average])


@pytest.mark.slow
def test_compiled_blocks_compute_the_same(ranks: Engine, alone: dict[str, Path]) -> None:
    compiled = ranks.folder("pretrain", "compiled")
    measured, expected = (gradients(at, 0.95) for at in (compiled, alone["pretrain"]))
    assert difference(measured, expected) <= 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
def test_gpu_computes_the_same_in_half_precision(
    strategy: str, engine: Engine, alone: dict[str, Path]
) -> None:
    folder, name = engine.folder("pretrain", f"gpu-{strategy}"), f"gpu-{strategy}"
    gpu = ("trainer.accelerator=gpu", "trainer.precision=bf16", "trainer.compile=regions")
    engine.elsewhere(engine.arguments("pretrain", name, *gpu, f"trainer.strategy={strategy}"))
    measured = gradients(folder, 0.95)
    for name, gradient in gradients(alone["pretrain"], 0.95).items():
        error = (measured[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert float(error) < 0.05, name  # bfloat16 keeps 8 bits
