"""The kernels that inductor generates for regions on an H200, with no GPU at hand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SM_SHARED_MEMORY = 227 * 2**10  # bytes that a program may use on Hopper


def run(program: str, *arguments: str, folder: Path, interpret: bool) -> None:
    environ = {**os.environ, "TRITON_INTERPRET": str(int(interpret)), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, ROOT / "tests/training" / program, *arguments],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_kernels_of_regions_compile_for_hopper_within_its_shared_memory(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    most = str(SM_SHARED_MEMORY)
    run("compile_regions_for_hopper.py", "sami-stored", most, folder=tmp_path, interpret=False)


@pytest.mark.slow
def test_interpreted_kernels_of_regions_compute_the_plain_steps_gradients(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    run("interpret_regions.py", "sami-stored", folder=tmp_path, interpret=True)
