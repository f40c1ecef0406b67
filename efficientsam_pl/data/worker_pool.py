"""Pool of worker processes that end when their parent does, and whose death is an error."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from efficientsam_pl.errors import Interrupted, UserError

_POLL_SECONDS = 0.5  # between two checks for the parent


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Open a pool of processes; after an error work that has not begun is cancelled.

    A Ctrl-C reaches them too where they run in a terminal. They ignore it, and this process kills
    them when it is interrupted: a task may take minutes.

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
    """Pool whose processes never receive a SIGINT, not even while they start."""

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        """Submit work; a process started by it inherits the blocked signals."""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return super().submit(*args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def kill(self) -> None:
        """Kill the processes during their work; the library has this from Python 3.14 on."""
        for process in list((self._processes or {}).values()):
            process.kill()


def _begin(parent: int) -> None:
    """Initialize a worker: one torch thread, and exit when the parent is gone."""
    # as many threads as cores in each of as many workers would compete; torch reads the variable
    # when it is imported, which few tasks need
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
