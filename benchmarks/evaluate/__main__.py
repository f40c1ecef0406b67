"""Time evaluation and segment everything against the usual implementations."""

import sys

from benchmarks.evaluate.speed import main

if __name__ == "__main__":
    sys.exit(main())
