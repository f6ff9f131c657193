"""Training on the GPU: that an agent learns there, and what an update and a step of acting cost."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import device_checkout  # noqa: F401  first: it makes sacglam importable
import device_workloads as workloads
from device_kernels import Record


def _config(out: str, **changes: Any) -> Any:
    from sacglam import TrainConfig
    from sacglam.training.demo import SETTINGS

    fixed = {"device": workloads.DEVICE, "out": out, "eval.interval": 0, "eval.episodes": 60}
    return TrainConfig().with_overrides({**SETTINGS, **fixed, **changes})


def check_training(report: Callable[..., None], steps: int = 5000, least: float = 0.5) -> None:
    """A quarter of the demo: interrupted, resumed, and then better than `least`."""
    from sacglam import Trainer

    with tempfile.TemporaryDirectory() as folder:
        config = _config(f"{folder}/run", total_steps=steps // 2)
        Trainer(config).train()
        longer = config.with_overrides({"total_steps": steps})
        result = Trainer(longer, resume=True).train()
        success = result.evaluation["success_mean"]
    case = f"playground/small, tiny-llama, {steps} steps: success {success:.3f}"
    report("training", case, {f"below {least}": max(0.0, least - success)}, 0.0)


# A Llama of Qwen2.5-0.5B's width and depth, over the environment's words alone.
WIDE = {
    "model.hidden_size": 896, "model.layers": 24, "model.heads": 14, "model.feed_forward": 4864,
    "model.dtype": "bfloat16", "lora.r": 16,
}  # fmt: skip


def time_training(record: Record, wide: Mapping[str, Any] = WIDE) -> None:
    """Batch of 64, 16 environments of `playground/small`."""
    from sacglam import Trainer

    for name, changes in (("tiny-llama, float32", {}), ("d 896, 24 layers, LoRA, bf16", wide)):
        with tempfile.TemporaryDirectory() as folder:
            # No updates while the buffer is filled.
            once = {"total_steps": 600, "learning_starts": 600, "eval.episodes": 1}
            trainer = Trainer(_config(f"{folder}/run", **changes, **once))
            trainer.train()
            algorithm = trainer.algorithm
            for case, call in (
                ("update of 64", algorithm.learner.update),
                ("acting step of 16", algorithm.collector.step),
            ):
                record("training", f"{name}: {case}", {"sacglam": call}, None, slow=True)
