"""``python -m nst_fast``: the same as the command ``nst-fast``."""

import sys

from nst_fast.cli import main

sys.exit(main())
