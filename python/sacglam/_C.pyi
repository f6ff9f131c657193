"""The native extension; its Python faces are sacglam.replay and sacglam.models.policy."""

from typing import Any

def __getattr__(name: str) -> Any: ...
