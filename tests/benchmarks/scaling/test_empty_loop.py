"""Steps of the real trainer between two logged ones log nothing and wait for nothing."""

from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import pytest

from benchmarks.scaling import empty_loop
from benchmarks.step_counts.counter import OperationCounter
from efficientsam_pl.training import train as training
from efficientsam_pl.training.run.loggers import TensorBoardRunLogger


class Counted(L.Callback):
    """Counts the operations of steps 12 to 19, and all values that are logged."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counter, self.logged = OperationCounter(), list[tuple[int, str]]()
        self.step = 0
        log = TensorBoardRunLogger.log_metrics

        def note(logger: Any, metrics: dict[str, float], step: int | None = None) -> None:
            self.logged += [(self.step, name) for name in metrics]
            log(logger, metrics, step)

        log_one = L.LightningModule.log

        def checked(module: Any, name: str, *args: Any, **kwargs: Any) -> None:
            self.logged.append((self.step, name))
            log_one(module, name, *args, **kwargs)

        monkeypatch.setattr(TensorBoardRunLogger, "log_metrics", note)

        monkeypatch.setattr(L.LightningModule, "log", checked)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.step = trainer.global_step
        if self.step == 11:
            self.counter.__enter__()  # type: ignore[no-untyped-call]
        elif self.step == 19:
            self.counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]


def test_steady_steps_log_nothing_and_read_no_device_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    standard: Any = training.standard_callbacks
    monkeypatch.setattr(training, "standard_callbacks", lambda *given: [counted, *standard(*given)])
    monkeypatch.setattr(empty_loop, "_UNTIMED", 0)
    overrides = ("trainer.max_steps=30", "run.trace=true", "trainer.ema_decay=0.9")
    assert empty_loop.loop_milliseconds(tmp_path, *overrides) > 0
    assert counted.counter.launches.total() > 8 * 10  # the steps were counted
    assert dict(counted.counter.device_reads) == {}
    steps = {step for step, _ in counted.logged}
    assert not steps & set(range(11, 19))
    named = {name for step, name in counted.logged if step == 9}
    terms = ("all", "masked", "visible", "cosine", "loss", "gradient_norm")
    assert named >= {f"train/{name}" for name in terms}
