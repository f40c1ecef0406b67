"""List the programs of this folder, one line each: `python -m benchmarks`."""

import argparse
import ast
import sys
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parent
_GUARD = 'if __name__ == "__main__":'


def main(argv: Sequence[str] | None = None) -> int:
    """Print every program with the first line of its docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.description = (__doc__ or "").splitlines()[0]
    parser.parse_args(argv)
    for name, line in programs().items():
        print(f"python -m {name}\n    {line}")
    return 0


def programs() -> dict[str, str]:
    """Map each module that `python -m` runs, at any depth, to the first line of its docstring.

    Files are parsed, not imported, so that the list needs no torch.
    """
    listed = {}
    for path in sorted(_ROOT.glob("*/**/*.py")):
        text = path.read_text()
        if _GUARD in text:
            docstring = ast.get_docstring(ast.parse(text)) or ""
            folders = path.relative_to(_ROOT.parent).with_suffix("").parts
            name = ".".join(folders).removesuffix(".__main__")
            listed[name] = docstring.splitlines()[0]
    return listed


if __name__ == "__main__":
    sys.exit(main())
