"""Pack SA-1B's tars again, smaller or byte for byte: `python data_prep/pack_sa1b.py --help`.

The same as `efficientsam pack sa1b`, for those who look here first.
"""

import sys

from efficientsam_pl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["pack", "sa1b", *sys.argv[1:]]))
