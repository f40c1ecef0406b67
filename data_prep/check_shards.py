"""Check every sample of a set of shards: `python data_prep/check_shards.py --help`.

The same as `efficientsam check-shards`, for those who look here first.
"""

import sys

from efficientsam_pl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["check-shards", *sys.argv[1:]]))
