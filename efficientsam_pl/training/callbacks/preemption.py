"""Save and stop at the end of a step, the same on all ranks, when the run is requested to."""

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import lightning as L  # noqa: N812
import numpy as np
import torch
import torch.distributed as dist

from efficientsam_pl.checkpoints.select import latest_checkpoint
from efficientsam_pl.cluster.launch import STOPPED, launch
from efficientsam_pl.cluster.signals import LostStore, Request, catch_signals
from efficientsam_pl.cluster.slurm import job_end_time, requeue
from efficientsam_pl.errors import SavedAndStopped, UserError
from efficientsam_pl.storage.filesystems import StoreRefusedError
from efficientsam_pl.storage.retries import SourceLostError
from efficientsam_pl.training.config import InterruptionConfig
from efficientsam_pl.training.run.folder import RunFolder


class Preemption(L.Callback):
    """Check for stop requests at each optimizer step and act on them one step later.

    Ranks may receive a signal at different times, or not at all, so they vote. A vote starts at the
    end of a step and is counted at the end of the next, so that nothing waits for it. Whether a
    vote is started or counted depends only on the step, the last step and the previous vote, which
    are the same on all ranks: no rank waits for a vote that another does not cast, and all of them
    stop together.

    Lightning's signal handlers run collectives in the middle of whatever a rank is doing, and its
    loop broadcasts whether there was a SIGTERM before each micro-batch; both are disabled.
    """

    def __init__(
        self,
        interruption: InterruptionConfig,
        save: Callable[[L.Trainer], None],
        folder: RunFolder | None = None,
    ) -> None:
        """Install the signal handlers.

        Args:
            interruption: How long before a job's end to save: more than two steps and a save take.
            save: Called on every rank at the end of a step; raises if nothing could be saved.
            folder: The run's folder, named in the message when it stops.
        """
        self._interruption, self._save, self._folder = interruption, save, folder
        self._requests = catch_signals()
        self._group: Any = None  # all ranks, on the CPU: a vote does not wait for the GPU
        self._vote: _Vote | None = None
        self._step = 0
        self._job_ends: float | None = None  # seconds since 1970; rank 0 only

    def setup(self, trainer: Any, pl_module: L.LightningModule, stage: str) -> None:
        """Disable Lightning's handlers, which it would install after this, and create the group."""
        trainer._signal_connector.register_signal_handlers = _nothing
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing
        if stage != "fit":
            self._requests.install([signal.SIGINT])  # Lightning would end the process
            return
        self._requests.install()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            timeout = timedelta(seconds=self._interruption.collective_timeout_s)
            self._group = dist.new_group(backend="gloo", timeout=timeout)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look up when the job ends, and start the first vote, on requests received so far.

        Raises:
            UserError: The job ends so soon that the run would stop at its first step every time.
        """
        self._step = trainer.global_step
        job = launch().job
        if trainer.is_global_zero and job is not None:
            self._job_ends = job_end_time(job)
        if _Vote(self._group, self._limit_is_near()).outcome():
            limit_s = self._interruption.save_before_limit_s
            raise UserError(
                f"job {job} reaches its time limit in less than interruption."
                f"save_before_limit_s={limit_s} s, before it has trained; give it more time, or "
                "lower the key"
            )
        self._requests.begin_saving(self._saved_so_far)  # all ranks are here: they have just voted
        self._vote = self._begin_vote()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Count the vote of the previous step, and act on it.

        Raises:
            SavedAndStopped: On all ranks, at the same step.
            RuntimeError: Saved, but SLURM refused to requeue the job.
        """
        if trainer.global_step == self._step:
            return  # between micro-batches of a step
        self._step = trainer.global_step
        request = self._count_vote()
        if self._step >= trainer.max_steps:
            return  # nothing is left to stop
        if request is not Request.NONE:
            self._stop(trainer, request)
        self._vote = self._begin_vote()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count a vote that is still open, if something else ended the run."""
        self._count_vote()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the handlers: the run is saved, so a signal may end the process."""
        self._requests.restore_handlers()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Restore the handlers, unless the run is stopping on request and exits by itself.

        A single process that loses its store elsewhere, such as amid a validation, saves first;
        several ranks, which cannot meet then, resume from the last checkpoint.
        """
        lost = isinstance(exception, SourceLostError | StoreRefusedError)
        if lost and self._group is None and trainer.global_step > 0:
            with suppress(RuntimeError):  # logged, and the previous checkpoint remains
                self._save(trainer)
        if not isinstance(exception, SavedAndStopped):
            self._requests.restore_handlers()

    def _limit_is_near(self) -> bool:
        if self._job_ends is None:
            return False
        return time.time() > self._job_ends - self._interruption.save_before_limit_s

    def _begin_vote(self) -> "_Vote":
        if self._limit_is_near():
            self._requests.note(Request.TIME_LIMIT)
        return _Vote(self._group, self._requests.strongest)

    def _count_vote(self) -> Request:
        vote, self._vote = self._vote, None
        return Request.NONE if vote is None else Request(vote.outcome())

    def _stop(self, trainer: L.Trainer, request: Request) -> None:
        _log_step(trainer)
        self._save(trainer)
        if request is Request.STORE_LOST:
            self._end_without_store()
        job = launch().job if request.requeues() else None
        why_not = requeue(job) if job is not None and trainer.is_global_zero else ""
        failed = self._any_failed(bool(why_not), job is not None and trainer.is_global_zero)
        where = "" if self._folder is None else f" to {self._folder.place()}"
        saved = f"saved step {self._step}{where} and stopped, since {request.reason()}"
        if request is Request.SIGINT:
            resumes = self._folder is None or self._folder.resume == "auto"
            saved += f"; the same command {'' if resumes else 'with run.resume=auto '}continues"
        if failed:  # exit code 1: the batch script requeues the job, which it would not after 75
            why_not = why_not or "see rank 0's log"
            raise RuntimeError(f"{saved}, but job {job} could not be requeued: {why_not}")
        if job is not None:
            saved += f"; job {job} is requeued"
        raise SavedAndStopped(saved, request.exit_code())

    def _end_without_store(self) -> None:
        """Name the file that one of the ranks could not read.

        Raises:
            SavedAndStopped: The batch script requeues the job, until a few starts in a row have
                saved nothing, since the store may stay away.
        """
        lost: list[Any] = [self._requests.lost_store]
        if self._group is not None:
            lost = [None] * dist.get_world_size(self._group)
            dist.all_gather_object(lost, self._requests.lost_store, group=self._group)
        first: LostStore = next(filter(None, lost))
        where = "" if self._folder is None else f" to {self._folder.place()}"
        message = f"saved step {self._step}{where} and stopped, since {first.message}"
        raise SavedAndStopped(message, first.code, requeue=first.code == STOPPED)

    def _saved_so_far(self) -> str:
        """Describe what the run can resume from if it ends at once."""
        latest = None if self._folder is None else latest_checkpoint(self._folder.local)
        return "nothing is saved" if latest is None else f"the last checkpoint is {latest}"

    def _any_failed(self, failed: bool, requeued: bool) -> bool:
        """Whether a rank failed; also a barrier, as srun ends all ranks once the first exits.

        Args:
            failed: Whether this rank failed.
            requeued: Whether this rank requeued the job; then other ranks may be gone already.
        """
        try:
            return bool(_Vote(self._group, failed).outcome())
        except RuntimeError:
            if failed or not requeued:
                raise
            return False


class _Vote:
    """Asynchronous maximum over all ranks: started by the constructor, awaited by `outcome`."""

    def __init__(self, group: Any, number: int) -> None:
        self._largest = np.array([int(number)])
        self._work = None
        if group is not None:
            shared = torch.from_numpy(self._largest)
            self._work = dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=group, async_op=True)

    def outcome(self) -> int:
        if self._work is not None:
            self._work.wait()
        return int(self._largest[0])


def _nothing() -> None:
    """Replace Lightning's handlers."""


def _log_step(trainer: Any) -> None:
    """Log the saved step, as Lightning would after the callbacks; else the curves would lack it."""
    trainer._logger_connector.on_batch_end()
    trainer._logger_connector.update_train_step_metrics()
