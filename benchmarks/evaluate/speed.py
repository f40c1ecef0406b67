"""Time evaluation and segment everything against the usual implementations.

Each part alternates with its reference in this process.
"""

from collections.abc import Sequence

from benchmarks.evaluate import average_precision, boxes, clicks, everything
from benchmarks.harness import Row, parse_options, report

NAME = "evaluate"
_PARTS = (clicks, boxes, everything, average_precision)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; the exit code does not depend on the goals."""
    options = parse_options(NAME, (__doc__ or "").splitlines()[0], argv)
    rows: list[Row] = []
    for part in _PARTS:
        rows += part.rows(options.quick)
    report(NAME, rows, options)
    return 0
