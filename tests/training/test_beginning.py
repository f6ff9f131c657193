"""Training that begins with what another run has learned."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sacglam import Trainer, check_training, load_policy
from sacglam.errors import CheckpointError, ConfigError

BRIEF = {"total_steps": 200, "eval.episodes": 4}


def same(a: Any, b: Any) -> bool:
    pairs = zip(a.trainable_parameters().items(), b.trainable_parameters().items(), strict=True)
    return all(n == m and torch.equal(p, q) for (n, p), (m, q) in pairs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"model.id": "tiny-t5", "critic.heads": 1},
        {"lora.r": 2, "optim.lr": 3e-3},
        {"algo": "ppo", "ppo.rollout": 10, "ppo.minibatch": 16, "policy.reduce": "sum"},
    ],
    ids=["llama", "t5", "lora", "ppo"],
)
def test_it_begins_where_the_other_ended(quick_config: Any, options: dict[str, Any]):
    first = Trainer(quick_config("first", **BRIEF, **options)).train()
    other = {k: v for k, v in options.items() if k.startswith(("algo", "ppo", "critic"))}
    other |= {"init_from": str(first.out), "env.kwargs": {"n_objects": 4}, "seed": 1}
    trainer = Trainer(quick_config("second", **BRIEF, **other))
    assert same(trainer.policy, first.policy)
    config = trainer.config
    assert config.optim.lr == (3e-3 if "lora.r" in options else 1.5e-3)
    assert config.policy.reduce == first.policy.options.reduce
    assert (config.lora.r == 2) is ("lora.r" in options)
    second = trainer.train()
    assert not same(second.policy, first.policy)
    shutil.rmtree(first.out)  # nothing of it is needed any more
    assert same(load_policy(second.out), second.policy)
    longer = Trainer.resume(second.out, total_steps=240).train()
    assert longer.env_steps == 240


def test_heads_of_another_kind_begin_anew(quick_config: Any):
    first = Trainer(quick_config("first", **BRIEF)).train()
    changes = {"init_from": str(first.out), "critic.layers": [16]}
    with pytest.warns(RuntimeWarning, match="the critic's heads begin anew"):
        trainer = Trainer(quick_config("second", **BRIEF, **changes))
    body, before = (p.trainable_parameters() for p in (trainer.policy, first.policy))
    assert all(torch.equal(body[n], p) for n, p in before.items() if n.startswith("model."))


def test_what_cannot_be_begun_with_is_refused(quick_config: Any, tmp_path: Path):
    first = Trainer(quick_config("first", **BRIEF)).train()
    begin = {"init_from": str(first.out)}
    with pytest.raises(ConfigError, match=r"policy.reduce is 'sum', but .* with 'mean'"):
        Trainer(quick_config("a", **begin, **{"policy.reduce": "sum"}))
    with pytest.raises(ConfigError, match="a model and init_from are given"):
        Trainer(quick_config("b", **begin), model=(first.policy.model, first.policy.tokenizer))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").write_text("")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        Trainer(quick_config("c", init_from=str(tmp_path / "empty")))
    assert not any((tmp_path / name).exists() for name in "abc")


def test_check_takes_it_too(quick_config: Any):
    first = Trainer(quick_config("first", **BRIEF)).train()
    found = check_training(quick_config("second", init_from=str(first.out)))
    assert found.agreement is not None
    assert found.agreement.holds
