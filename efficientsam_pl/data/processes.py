"""Worker processes that end when their parent does, and whose death is told."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context

from efficientsam_pl.errors import UserError

_LOOKS_EVERY = 0.5  # seconds between two looks for the parent


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes to send work to; after an error what has not begun is given up.

    Raises:
        UserError: One of them was killed.
    """
    context = get_context("spawn")  # threads of this process do not survive a fork
    pool = ProcessPoolExecutor(workers, context, _begin, (os.getpid(),))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps for want of memory; try fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(parent: int) -> None:
    """In a worker: one thread of torch, and an end when the parent is gone, however it ended."""
    import torch

    torch.set_num_threads(1)  # as many workers as cores, each with as many threads, are in a jam

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOKS_EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
