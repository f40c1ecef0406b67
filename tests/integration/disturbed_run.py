"""A small fit in a process of its own, whose ranks another program starts and disturbs.

python disturbed_run.py WAY FOLDER STEPS [ACCUMULATED]

Ranks meet by torchrun's variables; without them Lightning starts as many as RANKS says, or one.
Each writes `FOLDER/rank-R.jsonl`: its process, its data workers', its steps.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, Dataset

from efficientsam_pl.cli import main as cli
from efficientsam_pl.cluster.launch import launch
from efficientsam_pl.cluster.signals import catch_signals
from efficientsam_pl.data.worker_init import make_worker_init_fn
from efficientsam_pl.errors import UserError
from efficientsam_pl.training.callbacks.preemption import Preemption
from efficientsam_pl.training.callbacks.rank_consistency import RankConsistency
from efficientsam_pl.training.callbacks.watchdog import Watchdog
from efficientsam_pl.training.config import InterruptionConfig
from efficientsam_pl.training.run.folder import RunFolder

RANK = launch().rank
STEP_S = 0.05


class Numbers(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.tensor([float(number % 7), 1.0])


class Line(L.LightningModule):
    """Fits a line; a step may be made to wait."""

    def __init__(self, at_step: Callable[[int], None]) -> None:
        super().__init__()
        self.line, self.at_step = nn.Linear(2, 1), at_step

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        time.sleep(STEP_S)
        self.at_step(self.trainer.global_step)
        return self.line(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


class Diary(L.Callback):
    """Log of a rank's progress, for whoever disturbs it."""

    def __init__(self, path: Path, begins_slowly: bool) -> None:
        self.path, self.begins_slowly = path, begins_slowly

    def write(self, **told: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(told) + "\n")

    def on_train_start(self, trainer: Any, *args: Any) -> None:
        fetcher = trainer.fit_loop._data_fetcher
        workers = fetcher.combined_loader._iterator.iterators[0]._workers
        self.write(process=os.getpid(), workers=[worker.pid for worker in workers])
        handlers = map(signal.getsignal, (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT))
        self.write(handlers=[getattr(one, "__qualname__", str(one)) for one in handlers])
        if self.begins_slowly:
            time.sleep(600)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.write(step=trainer.global_step)


def at_step(way: str) -> Callable[[int], None]:
    """Make what a rank does by itself at a step."""

    def nothing(step: int) -> None:
        pass

    def sleep(step: int) -> None:
        if step == 3 and RANK == 0:
            time.sleep(600)

    def hold_lock(step: int) -> None:
        if step == 3:  # a long match never releases Python's lock
            import re

            re.match(r"(a*)*$", "a" * 64 + "b")

    def be_wrong(step: int) -> None:
        if step == 3 and RANK == 1:
            raise UserError("what only rank 1 has found")

    return {"sleep": sleep, "hold_lock": hold_lock, "be_wrong": be_wrong}.get(way, nothing)


def run(way: str, folder: Path, steps: int, accumulated: int = 1) -> None:
    torch.set_num_threads(1)
    caught = catch_signals()
    if way == "asked_before":
        signal.raise_signal(signal.SIGUSR1)
        assert caught.strongest
    diary = Diary(folder / f"rank-{RANK}.jsonl", way == "slow_start")
    interruption = InterruptionConfig(collective_timeout_s=60)
    world = launch().ranks_per_node if launch().kind == "torchrun" else int(os.environ["RANKS"])
    header = {"config": {"trainer": {"rank": RANK if way == "unlike" else 0, "steps": steps}}}
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world,
        strategy=DDPStrategy() if world > 1 else "auto",
        max_steps=steps,
        accumulate_grad_batches=accumulated,
        callbacks=[
            RankConsistency(header),
            diary,
            Preemption(
                interruption,
                lambda trainer: diary.write(saved=trainer.global_step),
                RunFolder(folder, None, "auto"),
            ),
            Watchdog(3.0 if way in ("sleep", "hold_lock", "stopped") else 600.0),
        ],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    workers = DataLoader(
        Numbers(), batch_size=4, num_workers=2, worker_init_fn=make_worker_init_fn()
    )
    trainer.fit(Line(at_step(way)), workers)
    diary.write(ended=trainer.global_step)


if __name__ == "__main__":
    # a shell that runs the tests in the background makes all of them ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    given = (sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
    parser = cli.build_parser
    parsed = type("Parsed", (), {"run": staticmethod(lambda arguments: run(*given))})
    cli._RANK_0_GRACE_S = 2.0
    cli._parse = lambda *arguments: parsed  # type: ignore[assignment]
    sys.exit(cli.main([]))
