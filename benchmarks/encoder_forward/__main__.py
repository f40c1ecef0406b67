"""Time one forward pass of EfficientSAM-Ti's encoder against the released implementation."""

import sys

from benchmarks.encoder_forward.speed import main

if __name__ == "__main__":
    sys.exit(main())
