"""Each run says in one line where its weights come from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def test_line_names_seeds_files_frozen_parts_and_the_resumed_checkpoint(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    short = ("trainer.max_steps=2", "run.seed=4")

    def said(*given: Any) -> str:
        run(*given, *short)
        [line] = [one for one in capsys.readouterr().out.splitlines() if "weights:" in one]
        return line

    assert said("pretrain", first) == (
        "weights: student from scratch (seed 4), teacher from random weights (seed 0)"
    )
    encoder = f"{first}/encoder.safetensors"
    given = (f"model.encoder={encoder}", "model.freeze.image_encoder=true")
    assert said("finetune", second, *given) == (
        f"weights: image encoder (frozen) from {encoder}, "
        "prompt encoder and mask decoder from scratch (seed 4)"
    )
    assert said("finetune", second, *given) == (
        f"weights: all from {second}/checkpoints/step-00000002, step 2"
    )
