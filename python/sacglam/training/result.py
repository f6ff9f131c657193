"""What a run has come to."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from ..models.policy import Policy
from .policies import load_policy


@dataclass(frozen=True)
class TrainResult:
    """What `Trainer.train` returns.

    Attributes:
        out: the run's folder.
        env_steps, updates, wall_s: how far it came, resumed parts included (and evaluations not).
        policy: the trained policy.
        evaluation: the content of eval.json, None if the run was interrupted or paused.
        interrupted: whether a signal or `Trainer.stop` ended it early (a checkpoint was saved).
    """

    out: Path
    env_steps: int
    updates: int
    wall_s: float
    policy: Policy
    evaluation: dict[str, Any] | None
    interrupted: bool

    def __repr__(self) -> str:
        if self.evaluation is not None:
            success = self.evaluation["success"]
            end = "success " + ", ".join(f"{k} {100 * v:.1f} %" for k, v in success.items())
        else:
            end = "interrupted" if self.interrupted else "paused"
        return (
            f"TrainResult({str(self.out)!r}, {self.env_steps:,} environment steps, "
            f"{self.updates:,} updates, {self.wall_s:.0f} s: {end})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, as for another process, it names the policy; there it is loaded again."""
        rest = {f.name: getattr(self, f.name) for f in fields(self)}
        device = str(rest.pop("policy").device)
        return partial(_result_of, **rest), (device,)


def _result_of(device: str, *, out: Path, **rest: Any) -> TrainResult:
    return TrainResult(out=out, policy=load_policy(out, device=device), **rest)
