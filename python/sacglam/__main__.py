"""`python -m sacglam` is the command `sacglam`."""

from __future__ import annotations

import sys

from .cli.main import main

sys.exit(main())
