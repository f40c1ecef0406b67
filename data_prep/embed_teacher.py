"""Store a teacher's features of a set: `python data_prep/embed_teacher.py --help`.

The same as `efficientsam embed-teacher`, for those who look here first.
"""

import sys

from efficientsam_pl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["embed-teacher", *sys.argv[1:]]))
