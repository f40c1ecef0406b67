"""Measure the data pipeline from tar bytes to batches against a common pipeline, cat and tar."""

import sys

from benchmarks.data.speed import main

if __name__ == "__main__":
    sys.exit(main())
