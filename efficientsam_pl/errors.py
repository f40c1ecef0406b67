"""What a user can mend: reported in one line, exit code 2, no traceback."""


class UserError(ValueError):
    """A wrong argument, config, file or value. The message names it and is one line."""


class SavedAndStopped(Exception):  # noqa: N818
    """A run that was asked to stop, has saved its state, and can go on later: exit code 75."""


def one_line(error: UserError) -> str:
    """The message. Of an error that a data worker sent it is the last line of what arrives."""
    text = str(error)
    if not text.startswith("Caught "):
        return text
    return text.strip().splitlines()[-1].partition(": ")[2]
