"""Traces, curves, images and reports stay consistent over restarts, nodes and full disks."""

import json
import logging
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L  # noqa: N812
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from efficientsam_pl.data.build import DatasetSplits
from efficientsam_pl.training.callbacks.data_report import DataReport
from efficientsam_pl.training.callbacks.image_logger import ImageLogger
from efficientsam_pl.training.callbacks.sample_trace import SampleTrace
from efficientsam_pl.training.config import RunConfig, TrainerConfig
from efficientsam_pl.training.run.disk_guard import BestEffortWriter
from efficientsam_pl.training.run.loggers import TensorBoardRunLogger, build_logger

MountDisk = Callable[..., Any]


class Ranks(L.Trainer):
    """As much of a trainer as these callbacks ask."""

    global_rank = world_size = num_nodes = node_rank = global_step = 0
    is_global_zero, strategy, loggers = True, None, ()  # type: ignore[assignment]

    def __init__(self, rank: int = 0, world: int = 1, nodes: int = 1, step: int = 0) -> None:
        self.global_rank, self.world_size, self.num_nodes = rank, world, nodes
        self.node_rank = rank // (world // nodes)
        self.is_global_zero, self.global_step = rank == 0, step
        self.strategy = SimpleNamespace(barrier=lambda: world > 1 and dist.barrier())


def consume(trace: SampleTrace, trainer: Any, *steps: int) -> None:
    for step in steps:
        trainer.global_step = step
        trace.on_train_batch_start(trainer)
        batch = SimpleNamespace(key=(f"r{trainer.global_rank}s{step}",))
        trace.on_train_batch_end(trainer, None, {"mean": torch.tensor(0.5)}, batch, 0)


def keys(folder: Path) -> list[str]:
    lines = (folder / "consumed.jsonl").read_text().splitlines()
    return [json.loads(line)["keys"][0] for line in lines]


def count_logged(caplog: pytest.LogCaptureFixture, words: str) -> int:
    return sum(words in record.getMessage() for record in caplog.records)


def test_resumed_trace_holds_what_the_checkpoint_holds_and_goes_on(tmp_path: Path) -> None:
    first, resumed = SampleTrace(tmp_path), SampleTrace(tmp_path)
    first.on_train_start(Ranks())
    consume(first, Ranks(), 0, 1, 2, 3)
    with (tmp_path / "consumed.jsonl").open("a") as file:
        file.write('{"step": 4, "ra')
    trainer = Ranks(step=2)  # the checkpoint after two steps: 0 and 1
    resumed.on_train_start(trainer)
    assert keys(tmp_path) == ["r0s0", "r0s1"]
    consume(resumed, trainer, 2, 3)
    assert keys(tmp_path) == ["r0s0", "r0s1", "r0s2", "r0s3"]


def test_trace_waits_for_room_and_loses_no_line(
    mount_disk: MountDisk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efficientsam_pl.training.run.disk_guard._RETRY_S", 0.0)
    disk, trainer = mount_disk(), Ranks()
    trace = SampleTrace(disk.path)
    trace.on_train_start(trainer)
    consume(trace, trainer, 0)
    disk.fill()
    consume(trace, trainer, *range(1, 200))  # more than what is left of the file's block
    assert keys(disk.path) == [f"r0s{step}" for step in range(len(keys(disk.path)))]
    assert 1 <= len(keys(disk.path)) < 200
    disk.empty()
    consume(trace, trainer, 200)
    assert keys(disk.path) == [f"r0s{step}" for step in range(201)]
    assert count_logged(caplog, "THE DISK IS FULL") == 1
    assert count_logged(caplog, "the disk has space again") == 1


def two_nodes(folder: Path, rank: int) -> None:
    """Rank 1 is on another node: it must never touch the file itself."""
    dist.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=2)
    trainer = Ranks(rank, world=2, nodes=2)
    trace = SampleTrace(folder / "run" if rank == 0 else folder / "not there")
    trace.on_train_start(trainer)
    consume(trace, trainer, 0, 1)
    trace.on_save_checkpoint(trainer)
    if rank == 0:
        (folder / "saved").write_text(json.dumps(keys(folder / "run")))
    consume(trace, trainer, 2)
    trace.on_train_end(trainer, L.LightningModule())
    dist.destroy_process_group()


def test_ranks_of_other_nodes_hand_their_lines_over(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=two_nodes, args=(tmp_path, rank)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert json.loads((tmp_path / "saved").read_text()) == ["r0s0", "r0s1", "r1s0", "r1s1"]
    assert keys(tmp_path / "run") == ["r0s0", "r0s1", "r1s0", "r1s1", "r0s2", "r1s2"]


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    logged = EventAccumulator(str(folder / "log"), size_guidance={"scalars": 0})
    logged.Reload()
    return [(event.step, event.value) for event in logged.Scalars(name)]


def log_steps(logger: Any, *steps: int, value: float = 1.0) -> None:
    for step in steps:
        logger.log_metrics({"loss": value}, step)


def test_resumed_curve_does_not_go_back(tmp_path: Path) -> None:
    """A checkpoint after 20 steps holds 10 and 20, not 30."""
    run = RunConfig(dir=str(tmp_path))
    killed = build_logger(run, TrainerConfig())
    log_steps(killed, 10, 20, 30, value=1.0)
    killed.finalize("failed")
    resumed = build_logger(run, TrainerConfig(), step=20)
    log_steps(resumed, 30, 40, value=2.0)
    resumed.finalize("success")
    assert curve(tmp_path, "loss") == [(10, 1), (20, 1), (30, 2), (40, 2)]


def test_picture_of_the_resumed_step_stays(tmp_path: Path) -> None:
    """It is drawn once, before or with the checkpoint, and carries the checkpoint's number."""
    picture = Image.new("RGB", (3, 2), (9, 9, 9))
    first = TensorBoardRunLogger(tmp_path, 0)
    for step in (10, 20, 30):
        first.log_image("drawn", picture, step)
    first.finalize("failed")
    resumed = TensorBoardRunLogger(tmp_path, 20)
    resumed.log_image("drawn", picture, 30)
    resumed.finalize("success")
    logged = EventAccumulator(str(tmp_path / "log"), size_guidance={"images": 0})
    logged.Reload()
    assert [event.step for event in logged.Images("drawn")] == [10, 20, 30]


def test_run_that_died_before_its_first_checkpoint_draws_anew(tmp_path: Path) -> None:
    run = RunConfig(dir=str(tmp_path))
    for value in (1.0, 2.0):
        logger = build_logger(run, TrainerConfig())
        log_steps(logger, 9, 19, value=value)
        logger.finalize("failed")
    assert curve(tmp_path, "loss") == [(9, 2), (19, 2)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_curves_have_a_gap_where_the_disk_was_full(
    mount_disk: MountDisk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efficientsam_pl.training.run.disk_guard._RETRY_S", 0.0)
    disk = mount_disk()
    logger = TensorBoardRunLogger(disk.path, 0)
    log_steps(logger, 0, 1)
    logger.save()
    disk.fill()
    for step in range(2, 400):  # TensorBoard writes on a thread of its own
        log_steps(logger, step)
        logger.save()
    files = list((disk.path / "log").iterdir())
    disk.empty()
    log_steps(logger, 400, 401)
    logger.finalize("success")
    steps = [step for step, _ in curve(disk.path, "loss")]
    assert steps[:2] == [0, 1]
    assert steps[-2:] == [400, 401]
    assert 4 <= len(steps) < 402
    assert steps == sorted(set(steps))
    assert sum("tfevents" in file.name for file in files) == 1  # no empty file is started
    assert count_logged(caplog, "THE DISK IS FULL: TensorBoard") == 1
    assert count_logged(caplog, "the disk has space again") == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_log_that_cannot_even_be_begun_stops_nothing(mount_disk: MountDisk) -> None:
    disk = mount_disk()
    logger = TensorBoardRunLogger(disk.path, 0)
    disk.fill()
    log_steps(logger, 9)
    logger.save()
    logger.finalize("failed")


def test_pictures_are_left_out_while_the_disk_is_full(
    mount_disk: MountDisk, caplog: pytest.LogCaptureFixture
) -> None:
    disk, picture = mount_disk(), Image.effect_noise((64, 64), 100)
    trainer = Ranks()
    showcase = ImageLogger(disk.path / "pictures", "drawn")
    showcase.log(trainer, picture, 1)
    disk.fill()
    showcase.log(trainer, picture, 2)
    showcase.log(trainer, picture, 3)
    disk.empty()
    showcase.log(trainer, picture, 4)
    names = sorted(path.name for path in (disk.path / "pictures").iterdir())
    assert names == ["step-00000001.png", "step-00000004.png"]
    assert count_logged(caplog, "THE DISK IS FULL: images") == 1


def test_report_that_found_no_room_is_the_one_before(
    mount_disk: MountDisk, caplog: pytest.LogCaptureFixture
) -> None:
    disk, trainer = mount_disk(), Ranks()
    report = DataReport(disk.path, DatasetSplits(train=(), weights=(), heldout=None), 0.1)
    path = disk.path / "data_report.json"
    report.on_save_checkpoint(trainer)
    before = path.read_text()
    report.load_state_dict(json.loads(before) | {"seen": 7, "good": 7})
    disk.fill()
    report.on_save_checkpoint(trainer)
    report.on_save_checkpoint(trainer)
    assert path.read_text() == before
    assert count_logged(caplog, "THE DISK IS FULL") == 1
    disk.empty()
    report.on_save_checkpoint(trainer)
    assert json.loads(path.read_text())["seen"] == 7


def test_other_errors_than_a_full_disk_are_raised(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    writer = BestEffortWriter("a thing", "it waits")

    def refuse() -> None:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(PermissionError):
        writer.try_write(refuse)
    assert not caplog.records
    assert not writer.full


def test_what_is_written_every_step_is_tried_now_and_then() -> None:
    now = [0.0]
    writer = BestEffortWriter("a thing", "it waits", clock=lambda: now[0])

    def refuse() -> None:
        raise ValueError("wrapped") from OSError(28, "No space left on device")

    assert writer.is_due()
    assert writer.try_write(refuse) is False
    assert not writer.is_due()
    now[0] = 10.0
    assert writer.is_due()
    assert writer.try_write(lambda: None) is True
    now[0] = 10.1
    assert writer.is_due()
