"""A run reports the environment in which it was started."""

import os
import stat
import warnings
from pathlib import Path
from typing import Any

import pytest


def test_run_without_srun_where_slurm_is_installed_is_not_warned_about(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a login node, and in a batch script that starts ranks by torchrun."""
    srun = tmp_path / "bin/srun"
    srun.parent.mkdir()
    srun.write_text("#!/bin/sh\n")
    srun.chmod(srun.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{srun.parent}:{os.environ['PATH']}")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        run("pretrain", tmp_path / "run", "trainer.max_steps=2")
    assert not [str(one.message) for one in warned if "srun" in str(one.message)]
