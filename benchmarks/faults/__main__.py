"""Inject faults into real two-node SLURM jobs and judge what each run leaves behind."""

import sys

from benchmarks.faults.campaign import main

if __name__ == "__main__":
    sys.exit(main())
