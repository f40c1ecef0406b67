"""Write a run's state to a checkpoint folder, under any strategy.

In one process and under DDP rank 0 writes one file; under FSDP2 every rank writes its shards.
Either layout can be read under either strategy, on any number of ranks.
"""

import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from efficientsam_pl.checkpoints.layout import (
    PLAIN,
    SHARDS,
    VALUES,
    FileRecord,
    Kind,
    file_records,
    partial_path,
    publish_checkpoint,
    replace_values,
    sync_file,
    write_manifest,
)
from efficientsam_pl.checkpoints.state import split_state
from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.retries import SourceLostError

_log = logging.getLogger(__name__)
_LATER_VALUES = "run-validated.pt"
_WRITE_ERRORS = (OSError, RuntimeError, UserError, SourceLostError, CheckpointException)


@dataclass(frozen=True)
class _SaveJob:
    """A state to write: this rank's part, sharing no memory with what training updates."""

    kind: Kind
    folder: Path
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    rank: int
    group: dist.ProcessGroup | None  # coordinates the shards; None: rank 0 writes alone


class CheckpointWriter:
    """Writes one checkpoint at a time, blocking training or in the background.

    If the disk is full or fails otherwise, the checkpoint is lost and the error is logged; the run
    continues, and its previous checkpoint remains the latest.
    """

    def __init__(
        self,
        writing: Literal["blocking", "background"],
        on_complete: Callable[[Path], None],
        on_files_written: Callable[[Path, list[Path]], None],
        node_local: bool = False,
    ) -> None:
        """Create a writer.

        Args:
            writing: Whether training waits; in the background a copy of the state is written.
            on_complete: Called on rank 0, possibly on the writer thread, with a complete checkpoint
                under its final name.
            on_files_written: Called on every rank that writes, with the partial folder and this
                rank's files, before the manifest is written.
            node_local: Whether this rank's disk is not rank 0's; its files are then removed once
                the checkpoint is complete.
        """
        self._writing = writing
        self._on_complete, self._on_files_written = on_complete, on_files_written
        self._node_local = node_local
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[bool] | None = None
        self._last: Path | None = None  # the last checkpoint that this writer completed
        self._failed = False

    def save_plain(self, checkpoint: Mapping[str, Any], folder: Path) -> None:
        """Save the full state from rank 0; called on rank 0 only."""
        self._save("plain", checkpoint, folder, 0, None)

    def save_sharded(
        self, checkpoint: Mapping[str, Any], folder: Path, group: dist.ProcessGroup
    ) -> None:
        """Save this rank's shards; called on every rank.

        Args:
            checkpoint: Lightning's, with sharded tensors.
            folder: The same on all ranks.
            group: All ranks, over gloo, used for nothing else.
        """
        self._save("sharded", checkpoint, folder, dist.get_rank(), group)

    def finish(self) -> bool:
        """Wait for the pending save; False if the last save failed on this rank."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._failed = not pending.result()
            if self._failed:
                self._last = None
        return not self._failed

    def close(self) -> None:
        """Wait for the pending save and end the thread."""
        self.finish()
        self._pool.shutdown()

    def _save(
        self,
        kind: Kind,
        checkpoint: Mapping[str, Any],
        folder: Path,
        rank: int,
        group: dist.ProcessGroup | None,
    ) -> None:
        self.finish()
        tensors, values = split_state(checkpoint)
        if folder == self._last:  # the same step again: validation has added its metrics since
            if rank == 0:
                self._update_values(folder, values)
            return
        self._last = folder
        background = self._writing == "background"
        snapshot = {
            name: _copy(tensor) if background else tensor for name, tensor in tensors.items()
        }
        job = _SaveJob(kind, folder, snapshot, values, rank, group)
        self._pending = self._pool.submit(self._write, job)
        if not background:
            self.finish()

    def _update_values(self, folder: Path, values: dict[str, Any]) -> None:
        """Replace the plain values of a complete checkpoint; its tensors stay."""
        try:
            path = folder / _LATER_VALUES
            torch.save(values, path)
            sync_file(path)
            replace_values(folder, _LATER_VALUES)
            self._on_files_written(folder, [path])
            self._on_complete(folder)
        except (OSError, RuntimeError, UserError, SourceLostError) as error:
            _log.warning("%s is kept without the validation metrics of its step: %s", folder, error)

    def _write(self, job: _SaveJob) -> bool:
        """Write a checkpoint; True if it is complete, the same on all ranks that write."""
        partial_folder = partial_path(job.folder)
        records: dict[str, FileRecord] = {}
        failure: str | None = None
        try:
            files = self._write_files(job, partial_folder)
            records = file_records(files, partial_folder)
            self._on_files_written(partial_folder, files)
        except _WRITE_ERRORS as error:
            failure = _one_line(error)
        gathered: list[Any] = [(records, failure)]
        if job.group is not None:
            gathered = [None] * dist.get_world_size(job.group)
            dist.all_gather_object(gathered, (records, failure), group=job.group)
        failures = [message for _, message in gathered if message is not None]
        if not failures and job.rank == 0:
            merged = {name: record for part, _ in gathered for name, record in part.items()}
            failure = self._publish(job, merged)
            failures = [] if failure is None else [failure]
        if job.rank == 0 and failures:
            free = shutil.disk_usage(partial_folder.parent).free / 2**20
            shutil.rmtree(partial_folder, ignore_errors=True)
            _log.error(
                "THE CHECKPOINT %s COULD NOT BE WRITTEN (%s; %.0f MiB are free on its disk); the "
                "previous checkpoint remains the latest",
                job.folder,
                failures[0],
                free,
            )
        elif self._node_local:
            shutil.rmtree(partial_folder, ignore_errors=True)
        return not failures

    def _publish(self, job: _SaveJob, records: Mapping[str, FileRecord]) -> str | None:
        """Write the manifest and give the folder its final name; returns the error, if any."""
        partial_folder = partial_path(job.folder)
        try:
            step = int(job.values["global_step"])
            write_manifest(partial_folder, job.kind, step, VALUES, records)
            publish_checkpoint(partial_folder, job.folder)
            self._on_complete(job.folder)
        except (OSError, UserError, SourceLostError) as error:
            return _one_line(error)
        return None

    def _write_files(self, job: _SaveJob, folder: Path) -> list[Path]:
        """Write and sync this rank's files of a checkpoint."""
        if job.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed while writing
        if job.group is None:
            folder.mkdir(parents=True)
            torch.save(job.tensors, folder / PLAIN)
            sync_file(folder / PLAIN)
            files = [folder / PLAIN]
        else:
            dist.barrier(
                job.group
            )  # rank 0 has emptied the folder; an error below reaches all ranks
            shards = folder / SHARDS
            writer = FileSystemWriter(shards)
            save(dict(job.tensors), storage_writer=writer, process_group=job.group)
            files = sorted(shards.glob(f"__{job.rank}_*.distcp"))
            files += [shards / ".metadata"] if job.rank == 0 else []
        if job.rank == 0:
            torch.save(job.values, folder / VALUES)
            sync_file(folder / VALUES)
            files.append(folder / VALUES)
        return files


def _copy(tensor: Tensor) -> Tensor:
    """Copy a tensor to CPU memory that training does not write to."""
    return tensor.detach().cpu() if tensor.is_cuda else tensor.detach().clone()


def _one_line(error: BaseException) -> str:
    """Format an error as one line; for a collective error, that of the rank that failed."""
    if isinstance(error, CheckpointException):
        first = next(iter(error.failures.values()))
        return _one_line(first[0])
    return " ".join(str(error).split()) or type(error).__name__
