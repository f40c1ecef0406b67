"""What a user can mend: reported in one line, exit code 2, no traceback."""


class UserError(ValueError):
    """A wrong argument, config, file or value. The message names it and is one line."""


def one_line(error: UserError) -> str:
    """The message. Of an error that a data worker sent it is the last line of what arrives."""
    text = str(error)
    if not text.startswith("Caught "):
        return text
    return text.strip().splitlines()[-1].partition(": ")[2]
