"""Print the losses of toy steps, or compare them bit for bit with another checkout's.

python -m benchmarks.golden_losses                      exact losses as JSON
python -m benchmarks.golden_losses --against COMMIT     a commit, or the folder of a checkout

Both run in this environment in float32 on one thread; the exit code is 1 if a loss differs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.golden_losses.running import HERE, Losses, golden_losses


def differences(ours: Losses, theirs: Losses) -> dict[str, str]:
    """Describe the first difference of each stage; empty text if there is none."""
    differing = {}
    for stage in sorted(ours.keys() | theirs.keys()):
        local, other = ours.get(stage, {}), theirs.get(stage, {})
        differing[stage] = next(
            filter(None, (_first(k, local, other) for k in ("train", "heldout"))), ""
        )
    return differing


def _first(kind: str, local: dict[str, list[str]], other: dict[str, list[str]]) -> str:
    here, there = local.get(kind, []), other.get(kind, [])
    for number, (a, b) in enumerate(zip(here, there, strict=False)):
        if a != b:
            return f"{kind} loss {number} is {_shown(a)} here, {_shown(b)} there"
    if len(here) != len(there):
        return f"{len(here)} {kind} losses here, {len(there)} there"
    return ""


def _shown(loss: str) -> str:
    return f"{float.fromhex(loss):.9g} ({loss})"


@contextmanager
def checkout_of(name: str) -> Iterator[Path]:
    """Return a folder unchanged, or check out a commit in a temporary worktree."""
    if Path(name).is_dir():
        yield Path(name).resolve()
        return
    git = ["git", "-C", str(HERE), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        place = str(Path(folder) / "checkout")
        command = [*git, "add", "--quiet", "--detach", place, name]
        added = subprocess.run(command, check=False, capture_output=True, text=True)
        if added.returncode:
            sys.exit(f"--against {name} is neither a folder nor a commit: {added.stderr.strip()}")
        try:
            yield Path(place)
        finally:
            subprocess.run([*git, "remove", "--force", place], check=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Print or compare the losses; exit code 1 if they differ."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.golden_losses",
        description="Exact losses of toy steps of both stages, against another checkout's.",
    )
    parser.add_argument("--against", metavar="COMMIT", help="a commit, or a checkout's folder")
    options = parser.parse_args(argv)
    if options.against is None:
        print(json.dumps(golden_losses(HERE), indent=1))
        return 0
    with checkout_of(options.against) as there:
        theirs = golden_losses(there)
    ours = golden_losses(HERE)
    differing = differences(ours, theirs)
    for stage, what in differing.items():
        count = sum(map(len, ours.get(stage, {}).values()))
        print(f"{stage}: {what or f'{count} losses bit-equal'}")
    return int(any(differing.values()))


if __name__ == "__main__":
    sys.exit(main())
