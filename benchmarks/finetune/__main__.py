"""Time prompted decoding, a finetuning step and mask AP against the released implementation."""

import sys

from benchmarks.finetune.speed import main

if __name__ == "__main__":
    sys.exit(main())
