"""Worker processes that end when their parent does, and whose death is told."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from efficientsam_pl.errors import Interrupted, UserError

_LOOKS_EVERY = 0.5  # seconds between two looks for the parent


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes to send work to; after an error what has not begun is given up.

    A Ctrl-C reaches them too where they run in a terminal. They ignore it, and this process kills
    them when it is interrupted: what they are doing may take minutes.

    Raises:
        UserError: One of them was killed.
    """
    context = get_context("spawn")  # threads of this process do not survive a fork
    pool = _Pool(workers, context, _begin, (os.getpid(),))
    try:
        yield pool
    except (KeyboardInterrupt, Interrupted):
        pool.kill()
        raise
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps for want of memory; try fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


class _Pool(ProcessPoolExecutor):
    """Whose processes never see a SIGINT, not even while they start."""

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        """Sends work; a process that this starts inherits which signals are blocked."""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return super().submit(*args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def kill(self) -> None:
        """Ends the processes amid their work; the library has this from Python 3.14 on."""
        for process in list((self._processes or {}).values()):
            process.kill()


def _begin(parent: int) -> None:
    """In a worker: one thread of torch, and an end when the parent is gone, however it ended."""
    import torch

    torch.set_num_threads(1)  # as many workers as cores, each with as many threads, are in a jam

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOKS_EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
