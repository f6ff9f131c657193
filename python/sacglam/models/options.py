"""How a language model becomes a policy."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError
from .critics import CRITICS


@dataclass(frozen=True)
class PolicyOptions:
    """How a language model becomes a policy; saved with it."""

    score: str = "logprob"  # or "raw_logit"
    reduce: str = "sum"  # or "mean"
    temperature: float = 1.0  # tau of the softmax over candidates
    critic: str = "leaf"  # or "reencode", "value": see models/critics.py
    critic_trunk: str = "shared"  # or "adapter"
    critic_gradient: bool = True  # whether the critic's gradient enters a shared trunk
    q_heads: int = 2
    q_layers: tuple[int, ...] = (128,)
    attn: str = "fast"  # or "reference"
    cuda_graphs: bool = True  # on a GPU: see models/graphs.py

    def __post_init__(self) -> None:
        for name, allowed in (
            ("score", ("logprob", "raw_logit")),
            ("reduce", ("sum", "mean")),
            ("critic", CRITICS),
            ("critic_trunk", ("shared", "adapter")),
            ("attn", ("fast", "reference")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}"
                )
        if not self.temperature > 0:
            raise ConfigError(f"temperature is {self.temperature}; it must be above 0")
