"""The native extension; its Python faces are sacglam.replay and sacglam.models.policy."""

from typing import Any

import numpy as np
import numpy.typing as npt

class CandidateSet:
    """An ordered set of K candidate actions, as token ids, with its trie. It never changes.

    ValueError: no candidate, an empty one, or two that are equal.
    """

    def __init__(self, tokens: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64]) -> None:
        """The candidates' ids, one behind the other, and where each begins [K + 1]."""

    def __len__(self) -> int: ...
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...
    @property
    def tokens(self) -> npt.NDArray[np.int32]: ...
    @property
    def offsets(self) -> npt.NDArray[np.int64]: ...

def __getattr__(name: str) -> Any: ...
