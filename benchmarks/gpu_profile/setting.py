"""Sizes and devices of a profile, and the parts' way to run commands."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.scaling.inputs import LEAST, RECIPES, write_configs, write_images

_ROOT = Path(__file__).parents[2]
_MASKS = 32


@dataclass(frozen=True)
class Setting:
    """Folder, device and sizes; a tiny profile proves the program on a CPU."""

    folder: Path
    device: Literal["cuda", "cpu"]
    is_tiny: bool
    ends: float  # by time.monotonic()

    def seconds_left(self) -> float:
        """Seconds until the budget is used up."""
        return self.ends - time.monotonic()

    def batch(self, images: int) -> int:
        """Batch size: as given, or two images in a tiny profile."""
        return 2 if self.is_tiny else images

    @property
    def torch_device(self) -> torch.device:
        """The device's."""
        return torch.device(self.device)

    @cached_property
    def shards(self) -> str:
        """Shards for all commands, written at first use."""
        folder = self.folder / "shards"
        if folder.exists():
            return f"{folder}/train-*.tar"
        return write_images(folder, 16 if self.is_tiny else 64)

    def run_stage(
        self, program: str, stage: str, student: str, name: str, overrides: Sequence[str]
    ) -> Path:
        """Run a stage in a process of its own, within the budget; return its folder of records.

        Args:
            program: `benchmarks.scaling.timed_run`, or one with the same arguments.
            stage: `pretrain` or `finetune`.
            student: `ti` or `s`.
            name: Name of the folder.
            overrides: Keys of the config.
        """
        home = self.folder / "runs" / name
        configs = home / "configs"
        if not configs.exists():
            write_configs(configs, self.shards, LEAST if self.is_tiny else RECIPES)
        given = [f"run.dir={home / 'run'}", "run.resume=none", "trainer.devices=1", *overrides]
        given += self._hardware()
        if stage == "finetune":
            given += ["prompts.rounds=each", "trainer.best_metric=null"]
            given += self._finetuning(configs, student)
        start = [program, stage, str(configs / f"{stage}.yaml"), str(home / "records"), *given]
        self.python(start)
        return home / "records"

    def python(self, arguments: Sequence[str]) -> None:
        """Run a module of this repository.

        Raises:
            RuntimeError: It has failed, or the budget is used up.
        """
        path = os.pathsep.join([str(_ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        try:
            done = subprocess.run(
                [sys.executable, "-m", *arguments],
                cwd=_ROOT,
                env=os.environ | {"PYTHONPATH": path},
                capture_output=True,
                text=True,
                timeout=max(1.0, self.seconds_left()),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError("the budget was used up during this part") from error
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments[:2])} has failed: {done.stderr[-2000:]}")

    def _hardware(self) -> list[str]:
        if self.device == "cuda":
            return ["trainer.accelerator=gpu", "trainer.precision=bf16", "data.workers=12"]
        return ["trainer.accelerator=cpu"]

    def _finetuning(self, configs: Path, student: str) -> list[str]:
        if self.is_tiny:
            return ["masks.masks_per_image=2"]
        model = configs / f"{student}.yaml"
        width, heads = {"ti": (192, 3), "s": (384, 6)}[student]
        model.write_text(json.dumps({"encoder": {"width": width, "heads": heads}}))
        return [f"model.name={model}", f"masks.masks_per_image={_MASKS}"]


def median(values: Sequence[float]) -> float:
    """Middle value."""
    return sorted(values)[len(values) // 2]


Result = dict[str, Any]
