"""Run commands of the package one after the other in this process.

It uses only `python -m efficientsam_pl`, so that it works with any checkout.
"""

import json
import runpy
import sys
from pathlib import Path


def run_commands(checkout: str, commands: str) -> int:
    """Run the commands; exit code of the first that fails, else 0."""
    sys.path.insert(0, checkout)
    import efficientsam_pl

    location = Path(efficientsam_pl.__path__[0]).resolve().parent
    if location != Path(checkout).resolve():
        print(f"the package comes from {location}, not from {checkout}", file=sys.stderr)
        return 1
    for arguments in json.loads(commands):
        sys.argv = ["efficientsam", *arguments]
        try:
            runpy.run_module("efficientsam_pl", run_name="__main__")
        except SystemExit as ended:
            if isinstance(ended.code, str):
                print(ended.code, file=sys.stderr)
                return 1
            if ended.code:
                return ended.code
    return 0
