"""Speeds against a clock that the test moves by hand."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import lightning as L  # noqa: N812
import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from efficientsam_pl.training.callbacks import throughput
from efficientsam_pl.training.callbacks.throughput import Throughput, peak_memory

# Seconds of the test's clock; a step of two micro-batches takes eight of them
DATA, STEP, VALIDATION, CHECKPOINT, PICTURE = 1, 3, 100, 50, 20
GLOBAL_BATCH, FLOPS, RATE = 8, 5, 10


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def perf_counter(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr(throughput, "time", moved)
    monkeypatch.setattr(throughput, "matmul_rate", lambda device, precision: RATE)
    return moved


class Photos(IterableDataset[Tensor]):
    """Batches without an end that take a second each."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            self.clock.seconds += DATA
            yield torch.ones(1)


class Slow(L.LightningModule):
    def __init__(self, clock: Clock, step: float = STEP) -> None:
        super().__init__()
        self.clock, self.step, self.layer = clock, step, nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.clock.seconds += self.step if self.trainer.global_step else 77  # the first compiles
        return self.layer(batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.clock.seconds += VALIDATION

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Aside(L.Callback):
    """Work of other callbacks: pictures, and checkpoints between steps and after validations."""

    def __init__(self, clock: Clock, meter: Throughput, file: Path) -> None:
        self.clock, self.meter, self.file, self.last = clock, meter, file, 0

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        before, self.last = self.last, trainer.global_step
        if self.last == before:
            return
        if self.last % 3 == 0:
            trainer.save_checkpoint(self.file)
            self.clock.seconds += CHECKPOINT
        if self.last % 5 == 0:
            with self.meter.paused():
                self.clock.seconds += PICTURE

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        trainer.save_checkpoint(self.file)
        self.clock.seconds += CHECKPOINT


class Recorder(Logger):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "recorder"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        speeds = {k: v for k, v in metrics.items() if k.startswith("speed/")}
        if speeds:
            assert step is not None
            self.lines.append((step + 1, speeds))  # Lightning counts from 0


def run(
    clock: Clock,
    folder: Path,
    last_step: int,
    order: Callable[[Throughput, Aside], list[L.Callback]],
    **options: Any,
) -> list[tuple[int, dict[str, float]]]:
    recorder = Recorder()
    meter = Throughput(GLOBAL_BATCH, lambda: FLOPS, torch.float32)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=last_step,
        accumulate_grad_batches=2,
        val_check_interval=4,  # micro-batches
        check_val_every_n_epoch=None,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        log_every_n_steps=2,
        logger=recorder,
        callbacks=order(meter, Aside(clock, meter, folder / "a.ckpt")),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(Photos(clock), batch_size=None)
    trainer.fit(Slow(clock), loader, DataLoader(Photos(clock), batch_size=None), **options)
    return recorder.lines


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        for message in (".*does not have many workers.*", ".*treespec, LeafSpec.*", ".*resuming.*"):
            warnings.filterwarnings("ignore", message)
        warnings.filterwarnings("ignore", ".*weights_only.*")
        yield


ORDERS: dict[str, Callable[[Throughput, Aside], list[L.Callback]]] = {
    "last": lambda meter, paused: [paused, meter],
    "first": lambda meter, paused: [meter, paused],
}


def test_speeds_leave_out_the_first_step_and_what_is_no_training(
    clock: Clock, tmp_path: Path
) -> None:
    lines = run(clock, tmp_path, 8, ORDERS["last"])
    assert [step for step, _ in lines] == [2, 4, 6, 8]
    for _, speeds in lines:
        # eight photos in two micro-batches of 1 s of data and 3 s of work
        assert speeds["speed/images_per_second"] == pytest.approx(8 / 8)
        assert speeds["speed/data_wait"] == pytest.approx(2 / 8)
        assert speeds["speed/mfu"] == pytest.approx(8 * FLOPS / (8 * RATE))
        assert speeds["speed/memory_gib"] > 0.05


def test_place_among_the_callbacks_does_not_matter_to_checkpoints_and_pictures(
    clock: Clock, tmp_path: Path
) -> None:
    lines = run(clock, tmp_path, 8, ORDERS["first"])
    assert [step for step, _ in lines] == [2, 4, 6, 8]
    # after each of a span's two checkpoints the second in which the next batch came may be lost
    assert all(1 <= round(speeds["speed/images_per_second"], 6) <= 16 / 14 for _, speeds in lines)


def test_resumed_run_counts_its_own_steps_alone(clock: Clock, tmp_path: Path) -> None:
    run(clock, tmp_path, 3, ORDERS["last"])  # the checkpoint is of the third step
    clock.seconds += 1e6
    lines = run(
        clock, tmp_path, 8, ORDERS["last"], ckpt_path=tmp_path / "a.ckpt", weights_only=False
    )
    assert [step for step, _ in lines] == [6, 8]  # the fourth step is this run's first
    assert all(speeds["speed/images_per_second"] == pytest.approx(1) for _, speeds in lines)


def test_ranks_share_the_images_and_the_first_one_tells(clock: Clock) -> None:
    logged: list[dict[str, float]] = []
    for rank in range(4):
        meter = Throughput(GLOBAL_BATCH, lambda: FLOPS, torch.float32)
        trainer = create_autospec(
            L.Trainer,
            instance=True,
            global_step=0,
            is_global_zero=rank == 0,
            log_every_n_steps=3,
            world_size=4,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )
        module = create_autospec(L.LightningModule, instance=True)
        module.log_dict = lambda values, **_: logged.append(values)
        meter.on_train_start(trainer, module)
        for step in range(1, 4):
            meter.on_train_batch_start(trainer)
            clock.seconds += 2
            trainer.global_step = step
            meter.on_train_batch_end(trainer, module)
    [speeds] = logged
    assert speeds["speed/images_per_second"] == 2 * GLOBAL_BATCH / 4  # steps 2 and 3
    assert speeds["speed/mfu"] == 2 * GLOBAL_BATCH * FLOPS / (4 * 4 * RATE)
    assert speeds["speed/data_wait"] == 0


def test_run_too_short_to_be_logged_measures_nothing(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(throughput, "matmul_rate")
    assert run(clock, tmp_path, 1, ORDERS["last"]) == []


def test_memory_is_that_of_the_process() -> None:
    held = torch.ones(2**26)  # 256 MiB
    assert 2**28 <= peak_memory(torch.device("cpu")) < 2**38
    del held
