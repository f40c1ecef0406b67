"""Evaluation and segment everything beside the usual ways: boxes, AP, clicks, a grid of prompts.

Each part alternates with its reference in this process.
"""

import sys
from collections.abc import Sequence

from benchmarks import evaluate_ap, evaluate_boxes, evaluate_clicks, evaluate_everything
from benchmarks.harness import Row, parse_options, report

NAME = "evaluate"
_PARTS = (evaluate_clicks, evaluate_boxes, evaluate_everything, evaluate_ap)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, and says by its exit code nothing about the goals."""
    options = parse_options(NAME, (__doc__ or "").splitlines()[0], argv)
    rows: list[Row] = []
    for part in _PARTS:
        rows += part.rows(options.quick)
    report(NAME, rows, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
