"""How a run's state goes to a checkpoint's folder and comes back, whatever the strategy.

Under one process and DDP rank 0 writes one file, under FSDP2 every rank its own shards. Either is
read under either, on any number of ranks.
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
    Kind,
    StoredPart,
    measured,
    put_in_place,
    replace_values,
    seal,
    sync,
    unfinished,
)
from efficientsam_pl.checkpoints.state import split
from efficientsam_pl.errors import UserError

_log = logging.getLogger(__name__)
_LATER_VALUES = "run-validated.pt"


@dataclass(frozen=True)
class _Work:
    """A state that is to be written: this rank's part, free of what training goes on changing."""

    kind: Kind
    folder: Path
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    rank: int
    group: dist.ProcessGroup | None  # for the shards' bookkeeping; None: rank 0 writes alone


class CheckpointWriter:
    """Writes one checkpoint at a time, before training goes on or behind it.

    A disk that is full, or refuses otherwise, costs the checkpoint and is told; the run goes on
    with the one before.
    """

    def __init__(
        self,
        writing: Literal["blocking", "background"],
        placed: Callable[[Path], None],
        written: Callable[[Path, list[Path]], None],
        own_disk: bool = False,
    ) -> None:
        """A writer.

        Args:
            writing: Whether training waits. In the background a copy of the state is written.
            placed: Called on rank 0, perhaps on the writing thread, with a checkpoint that is whole
                and has its name.
            written: Called on every rank that writes, with the unfinished folder and its files,
                before the checkpoint is sealed.
            own_disk: Whether this rank's folder is not rank 0's: its files are not needed further.
        """
        self._writing, self._placed, self._written = writing, placed, written
        self._own_disk = own_disk
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[bool] | None = None
        self._last: Path | None = None  # what this writer has made whole last
        self._failed = False

    def save_plain(self, checkpoint: Mapping[str, Any], folder: Path) -> None:
        """On rank 0 alone: all of the state lies on this rank."""
        self._save("plain", checkpoint, folder, 0, None)

    def save_sharded(
        self, checkpoint: Mapping[str, Any], folder: Path, group: dist.ProcessGroup
    ) -> None:
        """On every rank, with the shards that lie on it.

        Args:
            checkpoint: Lightning's, with sharded tensors.
            folder: The same on all ranks.
            group: Of all ranks, over gloo, and used for nothing else.
        """
        self._save("sharded", checkpoint, folder, dist.get_rank(), group)

    def finish(self) -> bool:
        """Waits for what is being written; False where the last save has failed on this rank."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._failed = not pending.result()
            if self._failed:
                self._last = None
        return not self._failed

    def close(self) -> None:
        """Waits, and ends the thread."""
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
        tensors, values = split(checkpoint)
        if folder == self._last:  # of this very step: a validation has told more since
            if rank == 0:
                self._tell_more(folder, values)
            return
        self._last = folder
        behind = self._writing == "background"
        kept = {name: _copied(tensor) if behind else tensor for name, tensor in tensors.items()}
        work = _Work(kind, folder, kept, values, rank, group)
        self._pending = self._pool.submit(self._write, work)
        if not behind:
            self.finish()

    def _tell_more(self, folder: Path, values: dict[str, Any]) -> None:
        """Other plain values beside the same tensors."""
        try:
            path = folder / _LATER_VALUES
            torch.save(values, path)
            sync(path)
            replace_values(folder, _LATER_VALUES)
            self._written(folder, [path])
            self._placed(folder)
        except (OSError, RuntimeError, UserError) as error:
            _log.warning("%s is kept without what was measured at its step: %s", folder, error)

    def _write(self, work: _Work) -> bool:
        """Whether the checkpoint is whole; the same on all ranks that write."""
        partial_folder = unfinished(work.folder)
        parts: dict[str, StoredPart] = {}
        trouble: str | None = None
        try:
            files = self._written_files(work, partial_folder)
            parts = measured(files, partial_folder)
            self._written(partial_folder, files)
        except (OSError, RuntimeError, UserError, CheckpointException) as error:
            trouble = _told(error)
        gathered: list[Any] = [(parts, trouble)]
        if work.group is not None:
            gathered = [None] * dist.get_world_size(work.group)
            dist.all_gather_object(gathered, (parts, trouble), group=work.group)
        troubles = [told for _, told in gathered if told is not None]
        if not troubles and work.rank == 0:
            every = {name: part for some, _ in gathered for name, part in some.items()}
            trouble = self._placed_whole(work, every)
            troubles = [] if trouble is None else [trouble]
        if work.rank == 0 and troubles:
            free = shutil.disk_usage(partial_folder.parent).free / 2**20
            shutil.rmtree(partial_folder, ignore_errors=True)
            _log.error(
                "THE CHECKPOINT %s COULD NOT BE WRITTEN (%s; %.0f MiB are free there); the newest "
                "checkpoint is still the one before",
                work.folder,
                troubles[0],
                free,
            )
        elif self._own_disk:
            shutil.rmtree(partial_folder, ignore_errors=True)
        return not troubles

    def _placed_whole(self, work: _Work, parts: Mapping[str, StoredPart]) -> str | None:
        """Gives a checkpoint whose parts are all there its manifest and its name."""
        partial_folder = unfinished(work.folder)
        try:
            seal(partial_folder, work.kind, int(work.values["global_step"]), VALUES, parts)
            put_in_place(partial_folder, work.folder)
            self._placed(work.folder)
        except (OSError, UserError) as error:  # a store that does not answer, too
            return _told(error)
        return None

    def _written_files(self, work: _Work, folder: Path) -> list[Path]:
        """This rank's files of a checkpoint, synced."""
        if work.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed amid it
        if work.group is None:
            folder.mkdir(parents=True)
            torch.save(work.tensors, folder / PLAIN)
            sync(folder / PLAIN)
            files = [folder / PLAIN]
        else:
            dist.barrier(work.group)  # rank 0 has made room; an error below reaches all ranks
            shards = folder / SHARDS
            writer = FileSystemWriter(shards)
            save(dict(work.tensors), storage_writer=writer, process_group=work.group)
            files = sorted(shards.glob(f"__{work.rank}_*.distcp"))
            files += [shards / ".metadata"] if work.rank == 0 else []
        if work.rank == 0:
            torch.save(work.values, folder / VALUES)
            sync(folder / VALUES)
            files.append(folder / VALUES)
        return files


def _copied(tensor: Tensor) -> Tensor:
    """On the CPU, in memory that training does not write to."""
    return tensor.detach().cpu() if tensor.is_cuda else tensor.detach().clone()


def _told(error: BaseException) -> str:
    """An error as one line; of a collective one, what went wrong on the rank it began on."""
    if isinstance(error, CheckpointException):
        first = next(iter(error.failures.values()))
        return _told(first[0])
    return " ".join(str(error).split()) or type(error).__name__
