"""Models that are given as objects: defaults, adapters, number format, and how they are found
again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from sacglam import Trainer, load_policy, make_env
from sacglam.config import LoraConfig as LoraFields
from sacglam.errors import ConfigError, UnsupportedModelError
from sacglam.models.policy import Policy
from sacglam.models.tiny import build_tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Qwen2Config, Qwen2ForCausalLM

PROMPT, ACTIONS = "Goal: Grasp red table\nYou see: red table\nAction:", ["Grasp", "Release all"]
RUN = {"total_steps": 120, "eval.episodes": 2, "optim.lr": 1e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model and its tokenizer, as `save_pretrained` writes them."""
    path = tmp_path_factory.mktemp("base")
    tokenizer = build_tokenizer(["Goal: Action:", *make_env("playground/small").vocabulary])
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    Qwen2ForCausalLM(
        Qwen2Config(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes, **heads)
    ).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def tokenizer(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def _plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def _adapted(base: Any, name: str = "default") -> Any:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["v_proj", "k_proj"])
    return get_peft_model(base, config, adapter_name=name)


def _scores(policy: Policy) -> list[float]:
    return policy.score([PROMPT], [ACTIONS])[0].log_probs.tolist()


def _trained(trainer: Trainer) -> set[str]:
    names = trainer.policy.trainable_parameters()
    return {n for n in names if not n.startswith("heads.")}


def test_defaults_are_those_of_a_model_that_is_not_tiny(
    quick_config: Any, folder: Path, tokenizer: Any
):
    trainer = Trainer(quick_config(), model=(_plain(folder), tokenizer))
    config = trainer.config
    assert (config.optim.lr, config.policy.reduce, config.lora.r) == (1e-4, "sum", 16)
    assert (config.model.id, config.model.dtype) == (str(folder), "float32")
    assert trainer.policy.options.reduce == "sum"
    assert all("lora_" in name for name in _trained(trainer))

    own = {"optim.lr": 3e-4, "policy.reduce": "mean", "lora.r": 0}
    trainer = Trainer(quick_config(**own), model=(_plain(folder), tokenizer))
    config = trainer.config
    assert (config.optim.lr, config.policy.reduce, config.lora.r) == (3e-4, "mean", 0)
    assert not any("lora_" in name for name in _trained(trainer))
    assert len(_trained(trainer)) == len(list(_plain(folder).parameters()))


def test_adapters_that_it_has_are_used_and_kept(quick_config: Any, folder: Path, tokenizer: Any):
    model = _adapted(_plain(folder))
    for parameter in model.parameters():  # as PeftModel.from_pretrained leaves them
        parameter.requires_grad_(False)
    trainer = Trainer(quick_config(**RUN, **{"lora.r": 8}), model=(model, tokenizer))
    assert trainer.config.lora == LoraFields(r=4, alpha=8, target_modules=["k_proj", "v_proj"])
    assert trainer.policy.model is model
    assert _trained(trainer) == {f"model.{n}" for n, _ in model.named_parameters() if "lora_" in n}
    trainer.train()
    assert any(p.any() for n, p in model.named_parameters() if "lora_B" in n)


KINDS = ("its folder", "no name", "other weights than its folder")


@pytest.mark.parametrize("trunk", ["shared", "adapter"])
@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_loaded_and_resumed(
    quick_config: Any, folder: Path, tokenizer: Any, tmp_path: Path,
    kind: str, adapted: bool, trunk: str,
):  # fmt: skip
    base = _plain(folder)
    if kind == "no name":
        base = Qwen2ForCausalLM(Qwen2Config(**{**base.config.to_dict(), "_name_or_path": ""}))
    elif kind == "other weights than its folder":
        with torch.no_grad():
            base.model.layers[0].mlp.up_proj.weight += 0.1
    config = quick_config(**RUN, **{"lora.r": 4, "critic.trunk": trunk, "sac.prior": True})
    run = Trainer(config, model=(_adapted(base) if adapted else base, tokenizer)).train()
    named = kind == "its folder"
    assert run.policy.name == (str(folder) if named else "")
    assert (run.out / "model").exists() != named

    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(run.out, moved)
    shutil.rmtree(run.out)
    loaded = load_policy(moved)
    assert _scores(loaded) == _scores(run.policy)
    loaded.save(tmp_path / "exported")
    longer = Trainer.resume(moved, total_steps=160).train()
    assert longer.updates > run.updates
    assert _scores(load_policy(moved)) == _scores(longer.policy)
    shutil.rmtree(moved)
    assert _scores(load_policy(tmp_path / "exported")) == _scores(run.policy)


def test_one_that_is_trained_in_full_is_loaded_and_resumed(
    quick_config: Any, folder: Path, tokenizer: Any
):
    run = Trainer(quick_config(**RUN, **{"lora.r": 0}), model=(_plain(folder), tokenizer)).train()
    assert _scores(load_policy(run.out)) == _scores(run.policy)
    assert Trainer.resume(run.out, total_steps=160).train().updates > run.updates


@pytest.mark.parametrize("adapted", [True, False])
def test_its_own_number_format_unless_one_is_asked_for(
    quick_config: Any, folder: Path, tokenizer: Any, adapted: bool
):
    def given(dtype: torch.dtype) -> tuple[Any, Any]:
        base = _plain(folder).to(dtype)
        return (_adapted(base) if adapted else base), tokenizer

    trainer = Trainer(quick_config(), model=given(torch.float64))
    assert trainer.config.model.dtype == "float64"
    assert trainer.policy.dtype == torch.float64
    asked = quick_config("asked", **RUN, **{"model.dtype": "bfloat16"})
    run = Trainer(asked, model=given(torch.float32)).train()
    assert run.policy.dtype == torch.bfloat16
    loaded = load_policy(run.out)
    formats = [{n: p.dtype for n, p in x.model.named_parameters()} for x in (run.policy, loaded)]
    assert formats[0] == formats[1]
    assert _scores(loaded) == pytest.approx(_scores(run.policy), abs=1e-6)
    with pytest.raises(ConfigError, match=r"float16; choose model\.dtype"):
        Trainer(quick_config(), model=given(torch.float16))


def test_what_cannot_be_used_is_refused_at_once(quick_config: Any, folder: Path, tokenizer: Any):
    def refused(model: Any, words: str, **options: Any) -> None:
        config = quick_config(**options)
        with pytest.raises(ConfigError, match=words):
            Trainer(config, model=(model, tokenizer))
        assert not Path(config.out).exists()

    refused(_adapted(_plain(folder)), "r is 0, but the given model has adapters", **{"lora.r": 0})
    refused(_adapted(_plain(folder), "mine"), r"adapters 'mine' \(.*LORA\); needed")
    base = _plain(folder)
    _adapted(base)
    refused(base, "no PeftModel")
    refused(_plain(folder), "Name modules", **{"lora.target_modules": ["nope"]})


def test_a_prior_needs_adapters(quick_config: Any, folder: Path, tokenizer: Any):
    config = quick_config(**{"sac.prior": True})
    assert Trainer(config, model=(_plain(folder), tokenizer)).policy.is_lora
    with pytest.raises(ConfigError, match="needs LoRA"):
        Trainer(config)  # a tiny model, which is trained in full
    with pytest.raises(ConfigError, match="needs LoRA"):
        config.with_overrides({"lora.r": 0})


def test_a_model_may_be_given_twice(folder: Path, tokenizer: Any):
    model = _plain(folder)
    first = _scores(Policy(model, tokenizer))
    again = Policy(model.to(torch.bfloat16), tokenizer)  # other code serves these numbers
    assert _scores(again) == pytest.approx(first, rel=0.05)
    with pytest.raises(TypeError, match="packed forests only"):
        model(input_ids=torch.ones(1, 3, dtype=torch.long))


def test_quantised_weights_are_refused_before_a_run_is_made(
    folder: Path, tokenizer: Any, quick_config: Any
):
    for adapted in (False, True):
        given = _plain(folder)
        given.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True)
        given = _adapted(given) if adapted else given
        config = quick_config(**RUN)
        with pytest.raises(UnsupportedModelError, match="quantised .bitsandbytes"):
            Trainer(config, model=(given, tokenizer))
        assert not Path(config.out).exists()


def test_weights_that_are_elsewhere_are_refused(folder: Path, tokenizer: Any, quick_config: Any):
    offloaded = accelerate.cpu_offload(_plain(folder), execution_device=torch.device("cpu"))
    with pytest.raises(UnsupportedModelError, match="offloaded"):
        Trainer(quick_config(**RUN), model=(offloaded, tokenizer))
    with pytest.raises(UnsupportedModelError, match="offloaded"):
        Policy(offloaded, tokenizer)


def test_adalora_is_named(folder: Path, tokenizer: Any, quick_config: Any):
    adapted = get_peft_model(
        _plain(folder), AdaLoraConfig(total_step=10, target_modules=["v_proj"])
    )
    with pytest.raises(ConfigError, match="'default' .*ADALORA"):
        Trainer(quick_config(**RUN), model=(adapted, tokenizer))


def test_gradient_checkpointing_is_said_to_have_no_effect(
    folder: Path, tokenizer: Any, quick_config: Any
):
    model = _plain(folder)
    model.gradient_checkpointing_enable()
    with pytest.warns(RuntimeWarning, match="optim.micro_batch"):
        Trainer(quick_config(**RUN), model=(model, tokenizer))
