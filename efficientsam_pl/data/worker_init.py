"""How a data worker begins: it keeps its memory, and ends when its parent ends it, not before.

SLURM signals every process of a step, and a terminal every process in front; what is done about it
is up to the process that trains. So workers ignore signals. Their parent, which would end those
that are left over by a signal too, holds a pipe instead: it is closed when the parent exits,
however it does, and then the workers end, even those that hang in a read.
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

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_LARGEST_KEPT, _MOST_KEPT = 32 << 20, 256 << 20  # bytes: of one piece, and of all that is free
_IGNORED = (
    signal.SIGUSR1,
    signal.SIGTERM,
    signal.SIGINT,  # one Ctrl-C, one traceback
)


def make_worker_init_fn() -> Callable[[int], None]:
    """What DataLoader is to call first in each worker of this process."""
    return partial(_begin, *_pipe_of(os.getpid()))


@cache
def _pipe_of(process: int) -> tuple[Connection, Connection]:
    """The ends that workers read and that their parent holds."""
    told, teller = multiprocessing.Pipe(duplex=False)
    # before multiprocessing's own, which sends SIGTERM to its children and waits for them
    atexit.register(teller.close)
    return told, teller


def _begin(told: Connection, teller: Connection, number: int) -> None:
    keep_memory()
    for signal_number in _IGNORED:
        signal.signal(signal_number, signal.SIG_IGN)
    teller.close()  # the parent's alone counts
    threading.Thread(target=_end_with_parent, args=(told,), daemon=True).start()


def _end_with_parent(told: Connection) -> None:
    told.poll(None)  # nothing is ever sent: the pipe was closed
    os._exit(0)  # torch reports any other code as a fault


def keep_memory() -> None:
    """Lets this process use freed memory again instead of asking the system for new pages.

    Every photo needs a few megabytes. glibc gives such pieces back when they are freed, and each
    new page costs a fault: two of nine milliseconds a photo, measured. Nothing elsewhere.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        libc.mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)
    except (OSError, AttributeError):
        return
