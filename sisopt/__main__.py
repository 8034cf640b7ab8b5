"""``python -m sisopt``: the command."""

import sys

from .cli import main

sys.exit(main())
