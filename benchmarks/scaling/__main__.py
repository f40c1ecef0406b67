"""Measure two ranks against one at the same global batch: time, memory and bytes sent."""

import sys

from benchmarks.scaling.two_ranks import main

if __name__ == "__main__":
    sys.exit(main())
