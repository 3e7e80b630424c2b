"""``python -m snncc`` is the command line."""

import sys

from snncc.cli import main

sys.exit(main())
