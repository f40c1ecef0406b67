"""The argument parser of all commands: one line for a mistake, more to read in --help."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.outputs import check_output

OutputKind = Literal["file", "folder", "either"]
PATTERN = "'PATTERN'"  # what an argument is called that may stand for several files


@dataclass(frozen=True)
class Output:
    """An argument that names what a command writes."""

    name: str
    key: str
    kind: OutputKind


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, without the usage text before it.

    Attributes:
        outputs: The arguments that name what the command writes.
        explain: What --help says at its end, made only when somebody reads it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outputs: list[Output] = []
        self.explain: Callable[[], str] | None = None

    def error(self, message: str) -> Any:
        """Raises UserError, which points to the command's own help."""
        raise UserError(f"{message} (see {self.prog} --help)")

    def format_help(self) -> str:
        """What --help prints."""
        told = super().format_help()
        return told if self.explain is None else f"{told}\n{self.explain()}"

    def add_output(self, *names: str, kind: OutputKind, **options: Any) -> None:
        """An argument that names what the command writes; `check_outputs` tries it."""
        action = self.add_argument(*names, **{"type": path, **options})
        key = names[-1] if names[-1].startswith("-") else str(action.metavar)
        self.outputs.append(Output(action.dest, key, kind))

    def check_outputs(self, arguments: argparse.Namespace) -> None:
        """Tries whether the outputs can be written.

        Raises:
            UserError: One cannot.
        """
        for output in self.outputs:
            value = getattr(arguments, output.name)
            for one in value if isinstance(value, list) else [value]:
                if one is not None:
                    check_output(output.key, one, output.kind)

    def unknown(self, words: Sequence[str]) -> Any:
        """Raises UserError for words that the command has no argument for."""
        told, hint = f"unrecognized arguments: {' '.join(words)}", ""
        called = {action.metavar for action in self._actions}
        if not any(word.startswith("-") or "=" in word for word in words):
            if PATTERN in called:
                hint = "; quote a pattern, or the shell makes several words of it"
            elif "FILE|DIR" in called:
                hint = "; give one file, or a folder for all that is in it"
        return self.error(f"{told}{hint}")


def path(text: str) -> Path:
    """Reads the name of a file or folder; an empty one would be the folder one is in."""
    return Path(path_text(text))


def path_text(text: str) -> str:
    """Reads the name of a file or folder, or of a place in a store."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty: is a variable of the shell not set?")
    return text
