"""Run the console command as `python -m efficientsam_pl`."""

import sys

from efficientsam_pl.cli.main import main

sys.exit(main())
