"""A run with a non-finite loss stops at once and keeps its last good checkpoint."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientsam_pl.checkpoints.reader import CheckpointReader
from efficientsam_pl.checkpoints.state import is_weight
from efficientsam_pl.errors import UserError
from efficientsam_pl.models.targets import OnlineTarget
from efficientsam_pl.structures import ImageBatch


@pytest.fixture
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """photo7's features are no numbers, from the fourth step on."""
    healthy = OnlineTarget.__call__
    seen: list[int] = []

    def features(target: OnlineTarget, batch: ImageBatch) -> Any:
        found = healthy(target, batch)
        seen.append(len(batch))
        bad = torch.tensor(["photo7" in key for key in batch.key]) & (len(seen) > 3)
        return found.masked_fill(bad[:, None, None], float("nan"))

    monkeypatch.setattr(OnlineTarget, "__call__", features)


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize("micro_batch", [4, 2])
def test_run_stops_with_the_images_and_the_last_good_checkpoint(
    run: Any, tmp_path: Path, micro_batch: int
) -> None:
    folder = tmp_path / "run"
    often = ("trainer.checkpoint_every_steps=1", f"trainer.micro_batch={micro_batch}")
    with pytest.raises(UserError, match=r"^non-finite loss") as raised:
        run("pretrain", folder, *often, "trainer.max_steps=12")
    message = str(raised.value)
    named = re.search(r"^non-finite loss at step (\d+) on images ([^;]*);", message)
    assert named is not None
    bad_step, photos = int(named[1]), named[2].split(", ")
    assert "photo7" in photos
    assert len(photos) == micro_batch  # those of the micro-batch alone
    assert f"{folder}/latest" in message
    saved = CheckpointReader(folder / (folder / "latest").read_text().strip())
    assert saved.manifest.step == saved.values["global_step"] == bad_step - 1
    assert all(bool(tensor.isfinite().all()) for _, tensor in saved.tensors(is_weight))


def test_a_gradient_without_end_stops_a_finetuning_run(run: Any, tmp_path: Path) -> None:
    endless = ("optim.peak_lr=1e30", "optim.warmup_steps=0", "trainer.max_steps=5")
    with pytest.raises(UserError, match=r"non-finite (loss|gradient) at step \d on images"):
        run("finetune", tmp_path / "run", *endless)
    assert not (tmp_path / "run/latest").exists()
