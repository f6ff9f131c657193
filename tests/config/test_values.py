"""What a configuration is made from: names, types, and fields that contradict each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sacglam import TrainConfig
from sacglam.config import CriticConfig, EnvConfig, OptimConfig
from sacglam.errors import ConfigError

MAKERS: dict[str, Callable[[Any], TrainConfig]] = {
    "constructor": lambda lr: TrainConfig(optim=OptimConfig(lr=lr)),
    "replace": lambda lr: dataclasses.replace(TrainConfig(), optim=OptimConfig(lr=lr)),
    "overrides": lambda lr: TrainConfig().with_overrides({"optim.lr": lr}),
    "mapping": lambda lr: TrainConfig.from_dict({"optim": {"lr": lr}}),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("lr", [1e-3, "1e-3", np.float64(1e-3), np.array(1e-3)], ids=repr)
def test_values_become_the_field_s_type(make: Any, lr: Any, tmp_path: Path):
    config = make(lr)
    assert type(config.optim.lr) is float
    assert config.optim.lr == 1e-3
    config.save(tmp_path / "config.yaml")
    assert TrainConfig.load(tmp_path / "config.yaml") == config


def test_whole_numbers_lists_and_arguments_of_numpy(tmp_path: Path):
    config = TrainConfig(
        env=EnvConfig(kwargs={"n_objects": np.int64(3)}),
        critic=CriticConfig(layers=(8, np.int32(4))),  # type: ignore[arg-type]  # numpy's numbers are taken too
        seed=np.int64(7),
    )
    config.save(tmp_path / "config.yaml")
    loaded = TrainConfig.load(tmp_path / "config.yaml")
    assert (loaded.env.kwargs, loaded.critic.layers, loaded.seed) == ({"n_objects": 3}, [8, 4], 7)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("lr", ["fast", True, [1e-3], 10**400], ids=str)
def test_other_types_are_refused(make: Any, lr: Any):
    with pytest.raises(ConfigError, match=r"optim\.lr is .* must be of type float"):
        make(lr)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"sack.alpha": 1}, r"unknown .* sack\.alpha; did you mean sac\.alpha"),
        ({"sac.alhpa": 1}, r"unknown .* sac\.alhpa; did you mean sac\.alpha"),
        ({"seed.x": 1}, r"unknown .* seed\.x; did you mean seed"),
        ({"lora.r.x": 1}, r"unknown .* lora\.r\.x; did you mean lora\.r"),
        ({"optim": 3}, "optim is 3; it must be a mapping"),
    ],
)
def test_overrides_of_what_is_no_field(overrides: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        TrainConfig().with_overrides(overrides)


def test_arguments_that_no_file_can_hold(tmp_path: Path):
    config = TrainConfig().with_overrides({"env.kwargs.rooms": object()})
    with pytest.raises(ConfigError, match=r"env\.kwargs cannot be written"):
        config.save(tmp_path / "config.yaml")
    assert not list(tmp_path.iterdir())


def test_a_learned_alpha_does_not_weigh_a_prior():
    with pytest.raises(ConfigError, match=r"Set sac\.learn_alpha to false"):
        TrainConfig().with_overrides({"lora.r": 8, "sac.prior": True, "sac.learn_alpha": True})


def test_names_with_dots_in_a_file(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("sac.alpha: 0.1\nsac:\n  gamma: 0.5\nreplay.her_ratio: 0.25\ntotal_steps: 7\n")
    config = TrainConfig.load(path)
    found = (config.sac.alpha, config.sac.gamma, config.replay.her_ratio, config.total_steps)
    assert found == (0.1, 0.5, 0.25, 7)


def test_flags_of_text_are_taken_as_they_are():
    from sacglam.cli.flags import overrides_from
    from sacglam.cli.main import build_parser

    for text in ("Rules: one.", "# Task", "[x", "7"):
        arguments = build_parser().parse_args(["train", "--prompt.instruction", text])
        assert overrides_from(arguments) == {"prompt.instruction": text}
    arguments = build_parser().parse_args(["train", "--prompt.instruction", "null"])
    assert overrides_from(arguments) == {"prompt.instruction": None}


@pytest.mark.parametrize(
    "text",
    [b"seed: \xff", b"out: 2026-13-45", b"seed: " + b"1" * 5000, b"[" * 100_000],
    ids=["no text", "no date", "no number", "too deep"],
)
def test_a_file_that_yaml_chokes_on(tmp_path: Path, text: bytes):
    (tmp_path / "config.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be read"):
        TrainConfig.load(tmp_path / "config.yaml")


def test_names_of_arguments_are_texts():
    with pytest.raises(ConfigError, match=r"env\.kwargs names an argument 1"):
        TrainConfig().with_overrides({"env.kwargs": {1: 2}})
