"""Time steps of the downstream tasks, and their scoring, against the usual implementations."""

import sys

from benchmarks.downstream.speed import main

if __name__ == "__main__":
    sys.exit(main())
