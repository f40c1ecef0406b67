"""A run that is asked to stop saves at the end of a step, on all ranks the same, and stops."""

import signal
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import lightning as L  # noqa: N812
import torch
import torch.distributed as dist

from efficientsam_pl.checkpoints.select import newest_checkpoint
from efficientsam_pl.cluster.launch import launch
from efficientsam_pl.cluster.signals import Request, catch_signals
from efficientsam_pl.cluster.slurm import end_of_job, requeue
from efficientsam_pl.errors import SavedAndStopped, UserError
from efficientsam_pl.training.config import InterruptionConfig
from efficientsam_pl.training.run.folder import RunFolder


class Preemption(L.Callback):
    """Looks at the requests at each optimizer step and acts on them one step later.

    Each rank may be told at another moment, or not at all, so the ranks vote. A vote is begun at
    the end of a step and counted at the end of the next, so that nothing waits for it. Whether one
    is begun or counted depends on the step, the last step and the vote before alone, which are the
    same everywhere: no rank waits for a vote that another does not cast, and all stop together.

    Lightning's own signal handlers run collectives amid whatever a rank is doing, and its loop asks
    all ranks for a SIGTERM before each micro-batch; both are taken out.
    """

    def __init__(
        self,
        interruption: InterruptionConfig,
        save: Callable[[L.Trainer], None],
        folder: RunFolder | None = None,
    ) -> None:
        """A look-out.

        Args:
            interruption: How long before a job's end it saves: more than two steps and a save take.
            save: Called on every rank at the end of a step; raises if nothing could be saved.
            folder: Of the run, which is named when it stops.
        """
        self._interruption, self._save, self._folder = interruption, save, folder
        self._requests = catch_signals()
        self._group: Any = None  # of all ranks, on the CPU: a vote need not wait for a GPU
        self._vote: _Vote | None = None
        self._step = 0
        self._job_ends: float | None = None  # seconds since 1970; known to rank 0

    def setup(self, trainer: Any, pl_module: L.LightningModule, stage: str) -> None:
        """Silences Lightning, which sets its handlers after this, and makes the ranks' group."""
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
        """Learns when the job ends, and begins the first vote, on what was asked until now.

        Raises:
            UserError: So soon that the run would stop at its first step, again and again.
        """
        self._step = trainer.global_step
        job = launch().job
        if trainer.is_global_zero and job is not None:
            self._job_ends = end_of_job(job)
        if _Vote(self._group, self._limit_is_near()).outcome():
            asked = self._interruption.save_before_limit_s
            raise UserError(
                f"job {job} is ended by its time limit in less than interruption."
                f"save_before_limit_s={asked} s, before it has trained; give it more time, or "
                "lower the key"
            )
        self._requests.begin_saving(self._kept)  # all ranks are here: they have just voted
        self._vote = self._begin_vote()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Counts the vote of the step before, and acts on it.

        Raises:
            SavedAndStopped: On all ranks, at the same step.
            RuntimeError: Saved, but SLURM would not start the job again.
        """
        if trainer.global_step == self._step:
            return  # amid an accumulation
        self._step = trainer.global_step
        asked = self._counted()
        if self._step >= trainer.max_steps:
            return  # nothing is left to stop
        if asked is not Request.NONE:
            self._stop(trainer, asked)
        self._vote = self._begin_vote()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Counts a vote that is still open, where something else has ended the run."""
        self._counted()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """A trained run is saved: from now on a signal ends it, and SLURM's script goes on."""
        self._requests.put_back()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Gives the signals back, but to a job that SLURM is ending, since it exits by itself."""
        if not isinstance(exception, SavedAndStopped):
            self._requests.put_back()

    def _limit_is_near(self) -> bool:
        if self._job_ends is None:
            return False
        return time.time() > self._job_ends - self._interruption.save_before_limit_s

    def _begin_vote(self) -> "_Vote":
        if self._limit_is_near():
            self._requests.note(Request.TIME_LIMIT)
        return _Vote(self._group, self._requests.strongest)

    def _counted(self) -> Request:
        vote, self._vote = self._vote, None
        return Request.NONE if vote is None else Request(vote.outcome())

    def _stop(self, trainer: L.Trainer, asked: Request) -> None:
        _log_step(trainer)
        self._save(trainer)
        job = launch().job if asked.requeues() else None
        why_not = requeue(job) if job is not None and trainer.is_global_zero else ""
        failed = self._any_failed(bool(why_not), job is not None and trainer.is_global_zero)
        where = "" if self._folder is None else f" to {self._folder.place()}"
        saved = f"saved step {self._step}{where} and stopped, since {asked.told()}"
        if asked is Request.SIGINT:
            resumes = self._folder is None or self._folder.resume == "auto"
            saved += f"; the same command {'' if resumes else 'with run.resume=auto '}continues"
        if failed:  # exit code 1 leaves the job to its batch script, which 75 would tell to rest
            why_not = why_not or "rank 0 tells why"
            raise RuntimeError(f"{saved}, but job {job} could not be requeued: {why_not}")
        if job is not None:
            saved += f"; job {job} is requeued"
        raise SavedAndStopped(saved, asked.exit_code())

    def _kept(self) -> str:
        """What a run that is ended at once goes on from."""
        newest = None if self._folder is None else newest_checkpoint(self._folder.local)
        return "nothing is saved" if newest is None else f"the last checkpoint is {newest}"

    def _any_failed(self, failed: bool, asked: bool) -> bool:
        """Whether a rank failed; a barrier too, as srun ends all once the first rank exits.

        Args:
            failed: Whether this one did.
            asked: Whether this one has had SLURM end the job: then others may be gone already.
        """
        try:
            return bool(_Vote(self._group, failed).outcome())
        except RuntimeError:
            if failed or not asked:
                raise
            return False


class _Vote:
    """The largest of all ranks' numbers. Begun when it is made; waited for when it is counted."""

    def __init__(self, group: Any, number: int) -> None:
        self._largest = torch.tensor([int(number)], device="cpu")
        self._work = None
        if group is not None:
            self._work = dist.all_reduce(
                self._largest, op=dist.ReduceOp.MAX, group=group, async_op=True
            )

    def outcome(self) -> int:
        if self._work is not None:
            self._work.wait()
        return int(self._largest.item())


def _nothing() -> None:
    """In the place of Lightning's handlers."""


def _log_step(trainer: Any) -> None:
    """What Lightning does after the callbacks, or the curves would lack the step that is saved."""
    trainer._logger_connector.on_batch_end()
    trainer._logger_connector.update_train_step_metrics()
