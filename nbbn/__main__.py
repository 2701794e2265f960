"""`python -m nbbn`."""

import sys

from .cli import main

sys.exit(main())
