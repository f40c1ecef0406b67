"""Runs on two ranks, and what finished runs leave: checkpoints, gradients, logged values."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efficientsam_pl.checkpoints.reader import CheckpointReader
from efficientsam_pl.checkpoints.state import join_state

PROGRAM = Path(__file__).parents[1] / "training/one_run.py"
BETA = 0.9


def checkpoint(folder: Path, step: int) -> dict[str, Any]:
    stored = CheckpointReader(folder / f"checkpoints/step-{step:08d}")
    return join_state(stored.load_all(), stored.values)


def gradients(folder: Path, step: int = 1) -> Tensor:
    """Average the gradients of the first steps as AdamW does; the first has a rate of 0 in MAE."""
    state = checkpoint(folder, step)["optimizer_states"][0]["state"]
    return torch.cat([state[name]["exp_avg"].flatten() for name in sorted(state)]) / (1 - BETA)


def assert_same_step(folder: Path, alone: Path) -> None:
    measured, expected = gradients(folder), gradients(alone)
    assert expected.any()
    assert float((measured - expected).norm() / expected.norm()) <= 1e-6


def run_alone(*run: str) -> None:
    """Run in a process of its own, where shapes are not checked."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *run],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(PROGRAM.parents[2]), *sys.path[1:]])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def run_pair(*runs: list[str]) -> None:
    """Run one after the other in two processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    common |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    common["PYTHONPATH"] = os.pathsep.join([str(PROGRAM.parents[2]), *sys.path[1:]])
    ranks = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), *(word for run in runs for word in ("--", *run))],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
            assert rank.stderr is not None
            rank.stderr.close()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(e[-3000:] for e in errors)


def logged(folder: Path) -> dict[str, float]:
    """Return the last value of each scalar in TensorBoard's file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [events] = sorted((folder / "log").rglob("events.out.tfevents.*"))[-1:]
    reader = EventAccumulator(str(events))
    reader.Reload()
    return {name: reader.Scalars(name)[-1].value for name in reader.Tags()["scalars"]}
