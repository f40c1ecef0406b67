"""Pack a COCO-format set into shards: `python data_prep/pack_coco.py --help`.

The same as `efficientsam pack coco`, for those who look here first.
"""

import sys

from efficientsam_pl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["pack", "coco", *sys.argv[1:]]))
