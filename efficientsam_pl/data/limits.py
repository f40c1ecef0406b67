"""Limits of the machine that data workers need: open files, and shared memory for batches.

Where one of them is too low, a run hangs or ends with a traceback of its workers, so both are
checked before it begins.
"""

import os
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from efficientsam_pl.data.datasets.base import SampleDataset
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.errors import UserError

SHARED_MEMORY = "/dev/shm"  # where torch keeps tensors that processes share
_FILES_OF_READER = 96  # shards, indexes and logs
_PIPES_OF_WORKER = 4


@dataclass(frozen=True)
class BatchesInFlight:
    """Batches of one loader that exist at a time, and the size of each."""

    count: int
    tensors: int
    bytes: int


def batches_in_flight(dataset: SampleDataset[object], samples: int, count: int) -> BatchesInFlight:
    """Measure a batch of padding, which has the size of any other and reads no file.

    Args:
        dataset: Makes the batches.
        samples: Samples of a batch.
        count: Batches that exist at a time.
    """
    batch = dataset.collate(dataset.__getitems__([SampleRef(0, None)] * samples))
    tensors = [value for value in vars(batch).values() if isinstance(value, Tensor)]
    return BatchesInFlight(count, len(tensors), sum(tensor.nbytes for tensor in tensors))


def check_open_files(loaders: Iterable[BatchesInFlight], workers: int) -> None:
    """Raise this process's limit of open files to what the loaders need at most.

    Args:
        loaders: The loaders that exist at a time; each tensor in flight is an open file.
        workers: Their processes, all together.

    Raises:
        UserError: The system's limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = (
        sum(1 for _ in Path("/proc/self/fd").iterdir())
        + _FILES_OF_READER
        + _PIPES_OF_WORKER * workers
    )
    needed += sum(loader.count * loader.tensors for loader in loaders)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(
            f"data.workers, with data.read_ahead batches each, need up to {needed} open files, but "
            f"the limit is {hard}: raise it (ulimit -n {needed}), or lower one of the two keys"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def check_shared_memory(loaders: Iterable[BatchesInFlight], processes: int) -> None:
    """Check that the batches in flight have room in shared memory.

    Args:
        loaders: The loaders of one process that exist at a time.
        processes: The training processes on this machine.

    Raises:
        UserError: They have not.
    """
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:  # a system without it
        return
    needed = processes * sum(loader.count * loader.bytes for loader in loaders)
    free = status.f_bavail * status.f_frsize
    if free < needed:
        raise UserError(
            f"{SHARED_MEMORY} has {_mebibytes(free)} MiB free, but the batches of data.workers, "
            f"data.read_ahead and trainer.micro_batch need {_mebibytes(needed)} MiB: enlarge it "
            f"(docker run --shm-size={_mebibytes(needed)}m), or lower one of the three keys"
        )


def _mebibytes(size: int) -> int:
    return -(-size // 2**20)
