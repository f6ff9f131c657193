"""What a person sees: progress while training, curves, tables, episodes, the state of the
installation. Reads run folders and plain dictionaries; knows nothing of the rest of sacglam."""

from __future__ import annotations
