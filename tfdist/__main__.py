"""`python -m tfdist` is the command `tfdist`."""

import sys

from tfdist.cli import main

sys.exit(main())
