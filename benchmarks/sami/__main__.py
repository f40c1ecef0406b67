"""Time a step of SAMI's student against MAE, and stored features against an online teacher."""

import sys

from benchmarks.sami.speed import main

if __name__ == "__main__":
    sys.exit(main())
