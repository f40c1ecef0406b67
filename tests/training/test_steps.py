"""Step n is what n optimizer steps have made: in the logger, the pictures, the histories."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from efficientsam_pl.training import train as training

Run = Callable[..., Any]
LONG = (
    "trainer.max_steps=20",
    "trainer.validate_every_steps=10",
    "trainer.checkpoint_every_steps=5",
    "trainer.micro_batch=2",
)


class Kill(L.Callback):
    """Ends a run as kill -9 does: amid step 13, or while it validates after step 10."""

    def __init__(self, amid: str) -> None:
        self.amid = amid

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if self.amid == "step" and trainer.global_step == 12:
            raise RuntimeError("killed")

    def on_validation_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if self.amid == "validation" and trainer.global_step == 10:
            raise RuntimeError("killed")


def logged(folder: Path) -> dict[str, list[int]]:
    """The steps at which each value stands."""
    events = EventAccumulator(str(folder / "log"), size_guidance={"scalars": 0}).Reload()
    return {tag: [one.step for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture
def heldout(shards: Path) -> str:
    return f"data.heldout={shards}/heldout-*.tar"


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "amid"), [("pretrain", "step"), ("finetune", "validation")])
def test_killed_and_resumed_run_logs_at_the_steps_of_the_straight_one(
    stage: str, amid: str, run: Run, heldout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(stage, tmp_path / "whole", heldout, *LONG)
    straight = logged(tmp_path / "whole")
    parts = {tag.partition("/")[0].partition("-")[0] for tag in straight}
    assert parts == {"train", "heldout", "speed", "lr", "epoch"}
    for tag, steps in straight.items():
        assert steps in ([10, 20], [0, 10, 20], [0]), tag
    assert straight["train/loss"] == straight["heldout/loss"] == straight["epoch"] == [10, 20]
    assert [step for step, _ in whole.history.heldout] == [10, 20]
    drawn = {path.name for path in (tmp_path / "whole/pictures").iterdir()}
    assert {"step-00000020.png"} <= drawn

    with monkeypatch.context() as patch:
        standard = training.standard_callbacks
        patch.setattr(
            training, "standard_callbacks", lambda *given: [Kill(amid), *standard(*given)]
        )
        with pytest.raises(RuntimeError, match="killed"):
            run(stage, tmp_path / "killed", heldout, *LONG)
    resumed = run(stage, tmp_path / "killed", heldout, *LONG)
    assert logged(tmp_path / "killed") == straight
    assert {path.name for path in (tmp_path / "killed/pictures").iterdir()} == drawn
    assert resumed.history.heldout == whole.history.heldout  # the checkpoint has the first point


def test_last_step_is_validated_once_whether_or_not_it_is_due(
    run: Run, heldout: str, tmp_path: Path
) -> None:
    for every, steps in (("3", [3, 6]), ("4", [4, 6])):
        folder = tmp_path / every
        done = run("pretrain", folder, heldout, f"trainer.validate_every_steps={every}")
        assert [step for step, _ in done.history.heldout] == steps
        assert logged(folder)["heldout/loss"] == steps
        assert done.heldout_loss == done.history.heldout[-1][1]
