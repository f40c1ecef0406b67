"""Run the toy recipes with a checkout's code and read their losses."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.golden_losses import commands
from benchmarks.golden_losses.recipes import MODEL, STAGES
from benchmarks.golden_losses.shards import write_shards

HERE = Path(__file__).resolve().parents[2]  # this checkout
Run = Callable[[Path, list[list[str]]], None]
Losses = dict[str, dict[str, list[str]]]  # by stage and kind, as exact hexadecimal floats


def golden_losses(checkout: Path, run: Run | None = None) -> Losses:
    """Train every toy recipe with the code of a checkout.

    Args:
        checkout: Folder of the package.
        run: Runs several of its commands; None: in a separate process.

    Raises:
        RuntimeError: A command has failed; the message has its output.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder / "shards")
        (run or run_commands)(checkout, [arguments(folder, stage) for stage in STAGES])
        return {stage: _losses(folder / stage) for stage in STAGES}


def arguments(folder: Path, stage: str) -> list[str]:
    """Write a toy recipe's config into the folder, and return its command line."""
    command, config = STAGES[stage]
    given = [
        f"data.train={folder}/shards/train-*.tar",
        f"data.heldout={folder}/shards/heldout-*.tar",
        f"run.dir={folder}/{stage}",
    ]
    if command == "finetune":
        given.append(f"model.name={_written(folder / 'model.yaml', MODEL)}")
    return [command, "-c", str(_written(folder / f"{stage}.yaml", config)), *given]


def run_commands(checkout: Path, given: list[list[str]]) -> None:
    """Run commands of a checkout's package in one process, on one thread.

    Raises:
        RuntimeError: A command has failed; the message has its output.
    """
    # the file alone: this checkout's package must not be importable beside the other's
    call = "import runpy, sys; sys.exit(runpy.run_path(sys.argv[1])['run_commands'](*sys.argv[2:]))"
    file = str(commands.__file__)
    script = [sys.executable, "-P", "-c", call, file, str(checkout), json.dumps(given)]
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        script, check=False, env=os.environ | environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{checkout} ends with {done.returncode}:\n{done.stdout}{done.stderr}")


def _written(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(json.dumps(config, indent=1))  # JSON is YAML
    return path


def _losses(run: Path) -> dict[str, list[str]]:
    """Read the losses of every micro-batch and every validation."""
    lines = [json.loads(line) for line in (run / "consumed.jsonl").read_text().splitlines()]
    heldout = []
    for checkpoint in sorted((run / "checkpoints").glob("step-*")):
        name = json.loads((checkpoint / "complete.json").read_text())["values"]
        values = torch.load(checkpoint / name, weights_only=True)
        heldout.append(values["efficientsam_pl"]["losses"]["heldout/loss"])
    return {
        "train": [float(line["loss"]).hex() for line in lines],
        "heldout": [float(loss).hex() for loss in heldout],
    }
