"""The "did you mean" part of an error message."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def hint(given: object, known: Sequence[str], *, limit: int = 12) -> str:
    """Names the near matches of `given` among `known`, or else what is known."""
    text = str(given)
    near = difflib.get_close_matches(text, known, n=3, cutoff=0.5)
    if not near:
        lowered = {name.lower(): name for name in known}
        near = [
            lowered[name]
            for name in difflib.get_close_matches(text.lower(), list(lowered), n=3, cutoff=0.5)
        ]
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    shown = ", ".join(repr(name) for name in known[:limit])
    more = f", ... ({len(known)} in all)" if len(known) > limit else ""
    return f"known are {shown}{more}"
