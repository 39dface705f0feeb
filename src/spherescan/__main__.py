"""Run the command line as `python -m spherescan`."""

import sys

from spherescan.cli import main

sys.exit(main())
