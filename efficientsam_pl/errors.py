"""Exceptions that end a command early without a fault: user errors, stop requests, Ctrl-C."""


class UserError(ValueError):
    """A wrong argument, config, file or value. The message names it and is one line."""


class SavedAndStopped(Exception):  # noqa: N818
    """A run that stopped on request after saving its state, so that it can be resumed.

    `code` is the exit code: 75, or 130 after Ctrl-C, so that no scheduler restarts the run.
    `requeue`: whether the job's batch script is to requeue it.
    """

    def __init__(self, message: str, code: int = 75, requeue: bool = False) -> None:
        super().__init__(message)
        self.code, self.requeue = code, requeue


class Interrupted(BaseException):
    """Ctrl-C with nothing to save: exit code 130.

    Raised instead of KeyboardInterrupt in a run, because Lightning exits the process on that.
    """


def one_line(error: Exception) -> str:
    """Return the message; for an error re-raised from a data worker, its last line."""
    text = str(error)
    if not text.startswith("Caught "):
        return text
    return text.strip().splitlines()[-1].partition(": ")[2]
