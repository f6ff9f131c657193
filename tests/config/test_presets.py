"""Presets are valid configurations, and say where they come from."""

from __future__ import annotations

import math

import pytest
from sacglam import TrainConfig
from sacglam.config import field_types
from sacglam.errors import ConfigError
from sacglam.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_changes_its_fields_and_no_others(name: str):
    config, default = TrainConfig.preset(name).to_dict(), TrainConfig().to_dict()
    for field in field_types(TrainConfig):
        found, before = config, default
        for part in field.split("."):
            found, before = found[part], before[part]
        assert found == PRESETS[name].get(field, before), field


def test_a_preset_survives_a_file(tmp_path):
    config = TrainConfig.preset("magellan")
    config.save(tmp_path / "config.yaml")
    assert TrainConfig.load(tmp_path / "config.yaml") == config
    assert config.optim.grad_clip == math.inf


def test_merging_changes_single_fields_and_whole_values():
    config = TrainConfig.preset("paper").with_overrides({"env.kwargs": {"n_objects": 3}})
    found = config.merged({"sac": {"alpha": 0.5}, "env": {"kwargs": {"split": "test"}}, "seed": 2})
    assert (found.sac.alpha, found.sac.gamma, found.seed) == (0.5, 0.99, 2)
    assert found.env.kwargs == {"split": "test"}  # a value, not a group of fields
    assert found.env.num_envs == 32


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sac": {"alpah": 0.5}}, r"sac\.alpah.*sac\.alpha"),
        ({"sca": {"alpha": 0.5}}, "unknown configuration field sca"),
        ({"sac": 3}, "sac is 3"),
    ],
)
def test_merging_what_is_no_field(values: dict, words: str):
    with pytest.raises(ConfigError, match=words):
        TrainConfig().merged(values)


def test_an_unknown_preset():
    with pytest.raises(ConfigError, match="choose one of paper, magellan, glam"):
        TrainConfig.preset("authors")
