"""Time a step of classification against timm's ViT in a plain loop with its Mixup."""

import sys

from benchmarks.downstream.classification import main

if __name__ == "__main__":
    sys.exit(main())
