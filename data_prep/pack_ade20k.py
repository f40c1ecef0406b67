"""Pack photos with label maps, as ADE20K's, into shards: `python data_prep/pack_ade20k.py --help`.

The same as `efficientsam pack ade20k`, for those who look here first.
"""

import sys

from efficientsam_pl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["pack", "ade20k", *sys.argv[1:]]))
