"""Argument parser of all commands: mistakes in one line, details in --help."""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.outputs import check_output

OutputKind = Literal["file", "folder", "either"]
PATTERN = "'PATTERN'"  # metavar of arguments that may match several files


@dataclass(frozen=True)
class Output:
    """An argument that names what a command writes."""

    name: str
    key: str
    kind: OutputKind


class Parser(argparse.ArgumentParser):
    """Argument parser that reports a mistake in one line, without the usage text.

    Attributes:
        outputs: The arguments that name what the command writes.
        explain: Builds the epilogue of --help; called only when help is printed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outputs: list[Output] = []
        self.explain: Callable[[], str] | None = None
        # "-5,2" after an option is its value, as from Python 3.14 on
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str) -> Any:
        """Raise UserError with a pointer to the help of the command."""
        raise UserError(f"{message} (see {self.prog} --help)")

    def format_help(self) -> str:
        """Return the text that --help prints."""
        text = super().format_help()
        return text if self.explain is None else f"{text}\n{self.explain()}"

    def add_output(self, *names: str, kind: OutputKind, **options: Any) -> None:
        """Add an argument that names an output; `check_outputs` checks that it is writable."""
        action = self.add_argument(*names, **{"type": path, **options})
        key = names[-1] if names[-1].startswith("-") else str(action.metavar)
        self.outputs.append(Output(action.dest, key, kind))

    def check_outputs(self, arguments: argparse.Namespace) -> None:
        """Check that all outputs can be written.

        Raises:
            UserError: An output cannot be written.
        """
        for output in self.outputs:
            value = getattr(arguments, output.name)
            for target in value if isinstance(value, list) else [value]:
                if target is not None:
                    check_output(output.key, target, output.kind)

    def unknown(self, words: Sequence[str]) -> Any:
        """Raise UserError for words that match no argument of the command."""
        message, hint = f"unrecognized arguments: {' '.join(words)}", ""
        metavars = {action.metavar for action in self._actions}
        if not any(word.startswith("-") or "=" in word for word in words):
            if PATTERN in metavars:
                hint = "; quote a pattern, or the shell makes several words of it"
            elif "FILE|DIR" in metavars:
                hint = "; give one file, or a folder for all that is in it"
        return self.error(f"{message}{hint}")


def path(text: str) -> Path:
    """Parse a local path; an empty one, which would mean the working directory, is an error."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is in a store; this must be a local path")
    return Path(path_text(text))


def path_text(text: str) -> str:
    """Parse a local path or a URL; an empty one is an error."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty: is a variable of the shell not set?")
    return text
