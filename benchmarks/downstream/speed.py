"""Time steps of the downstream tasks, and their scoring, against the usual implementations.

Each part alternates with its reference in this process.
"""

import argparse
import time
from collections.abc import Sequence
from types import ModuleType

from benchmarks.downstream import classification, detection, evaluation, semantic
from benchmarks.harness import Options, Row, common_parser, report

NAME = "downstream"
PARTS: dict[str, ModuleType] = {
    "classification": classification,
    "detection": detection,
    "semantic": semantic,
    "evaluation": evaluation,
}
_QUICK_S, _WHOLE_S = 38.0, 600.0  # of rounds: of all parts together; of each


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; the exit code does not depend on the goals."""
    start = time.perf_counter()
    parser = common_parser(NAME, (__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", type=_parts, default=tuple(PARTS), metavar="PART,...", help=", ".join(PARTS)
    )
    arguments = parser.parse_args(argv)
    parts: tuple[str, ...] = arguments.only
    rows: list[Row] = []
    for left, part in zip(range(len(parts), 0, -1), parts, strict=True):
        spent = time.perf_counter() - start
        seconds = (_QUICK_S - spent) / left if arguments.quick else _WHOLE_S
        rows += PARTS[part].measure(arguments.quick, seconds)
    report(NAME, rows, Options(json=arguments.json, quick=arguments.quick))
    return 0


def _parts(text: str) -> tuple[str, ...]:
    """Parse names of parts."""
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(PARTS)}")
    return names
