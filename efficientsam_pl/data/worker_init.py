"""Initialize data workers: keep freed memory, ignore signals, exit with the parent.

SLURM signals every process of a step, and a terminal every process in the foreground; the
training process decides how to react. So workers ignore signals. Their parent holds a pipe
instead: it is closed when the parent exits, however it does, and then the workers exit, even
those that hang in a read.
"""

import atexit
import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from functools import cache, partial
from multiprocessing.connection import Connection

from efficientsam_pl.data.tensor_transfer import send_small_tensors_by_value

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_LARGEST_KEPT, _MOST_KEPT = 32 << 20, 256 << 20  # bytes: of one piece, and of all that is free
_IGNORED = (
    signal.SIGUSR1,
    signal.SIGTERM,
    signal.SIGINT,  # one Ctrl-C, one traceback
)


def make_worker_init_fn() -> Callable[[int], None]:
    """Build the `worker_init_fn` of this process's DataLoaders."""
    return partial(_begin, *_pipe_of(os.getpid()))


@cache
def _pipe_of(process: int) -> tuple[Connection, Connection]:
    """Create the pipe whose end workers read and whose other end their parent holds."""
    read_end, write_end = multiprocessing.Pipe(duplex=False)
    # before multiprocessing's own, which sends SIGTERM to its children and waits for them
    atexit.register(write_end.close)
    return read_end, write_end


def _begin(read_end: Connection, write_end: Connection, number: int) -> None:
    keep_memory()
    send_small_tensors_by_value()
    for signal_number in _IGNORED:
        signal.signal(signal_number, signal.SIG_IGN)
    write_end.close()  # only the parent's counts
    threading.Thread(target=_end_with_parent, args=(read_end,), daemon=True).start()


def _end_with_parent(read_end: Connection) -> None:
    read_end.poll(None)  # nothing is ever sent: the pipe was closed
    os._exit(0)  # torch reports any other code as a fault


def keep_memory() -> None:
    """Let this process reuse freed memory instead of requesting new pages from the system.

    Every image needs a few megabytes. glibc returns such blocks when they are freed, and each new
    page costs a fault: two of nine milliseconds an image, measured. No effect without glibc.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        libc.mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)
    except (OSError, AttributeError):
        return
