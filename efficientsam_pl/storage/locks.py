"""Lock a local file against other processes that write it."""

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock

from efficientsam_pl.storage.files import is_local, local_path


@contextmanager
def write_lock(place: str, block: bool = True, keep: bool = False) -> Iterator[None]:
    """Keep other processes from writing the same file; a remote one has no lock.

    If a lock file was removed before a late process opens it, two processes write at once. That is
    harmless where they write the same content, each atomically.

    Args:
        place: The file.
        block: Whether to wait for a process that holds the lock.
        keep: Whether the lock file stays: for content that two processes would not write alike.

    Raises:
        Timeout: Another process holds the lock, and `block` is False.
    """
    if not is_local(place):
        yield
        return
    file = local_path(place).with_name(f".{local_path(place).name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file, blocking=block):
        try:
            yield
        finally:
            if not keep:
                file.unlink(missing_ok=True)
