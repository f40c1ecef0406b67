"""What is printed where there is no terminal."""

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("steps", [3, 7, 610])
def test_five_lines_are_printed_whatever_the_number_of_steps(
    run: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], steps: int
) -> None:
    """Of 610 steps the bar shows every third, a line is due every 122nd."""
    few = ("trainer.global_batch=1", "trainer.micro_batch=1", "run.trace=false")
    often = ("trainer.checkpoint_every_steps=5000", "trainer.picture_every_steps=5000")
    run("pretrain", tmp_path / "run", *few, *often, f"trainer.max_steps={steps}")
    told = [line for line in capfd.readouterr().out.splitlines() if "images/s" in line]
    assert [line.split()[2] for line in told][-1].startswith(
        f"{steps - steps % (steps // 5 or 1)}/"
    )
    assert len(told) == steps // max(1, steps // 5)
