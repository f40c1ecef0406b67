"""Pack ImageNet, or any folder of images, into shards: `python data_prep/pack_imagenet.py --help`.

The same as `efficientsam pack imagenet`, for those who look here first.
"""

import sys

from efficientsam_pl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["pack", "imagenet", *sys.argv[1:]]))
