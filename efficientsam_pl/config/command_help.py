"""Text of a config command's --help, kept on its config's class. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CommandHelp:
    """Text of --help for a command that has a config.

    `keys` are those listed with their comments, `configs` the beginnings of the names of shipped
    configs that are listed for -c.
    """

    summary: str
    keys: tuple[str, ...]
    configs: tuple[str, ...]
    example: str
