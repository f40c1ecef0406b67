"""What a user can mend: reported in one line, exit code 2, no traceback."""


class UserError(ValueError):
    """A wrong argument, config, file or value. The message names it and is one line."""
