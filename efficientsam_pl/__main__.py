"""`python -m efficientsam_pl` is the console command."""

import sys

from efficientsam_pl.cli.main import main

sys.exit(main())
