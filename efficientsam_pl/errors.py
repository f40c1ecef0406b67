"""How a command ends early without a fault: a user's mistake, a request to stop, Ctrl-C."""


class UserError(ValueError):
    """A wrong argument, config, file or value. The message names it and is one line."""


class SavedAndStopped(Exception):  # noqa: N818
    """A run that was asked to stop, has saved its state, and can go on later.

    `code` is the exit code: 75, or 130 after a Ctrl-C, which no scheduler is to start again.
    """

    def __init__(self, message: str, code: int = 75) -> None:
        super().__init__(message)
        self.code = code


class Interrupted(BaseException):
    """Ctrl-C where there is nothing to save: exit code 130.

    Raised instead of KeyboardInterrupt in a run, since Lightning ends the process on that one.
    """


def one_line(error: UserError) -> str:
    """The message. Of an error that a data worker sent it is the last line of what arrives."""
    text = str(error)
    if not text.startswith("Caught "):
        return text
    return text.strip().splitlines()[-1].partition(": ")[2]
