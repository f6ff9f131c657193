"""Models that peft or their user has changed: scored as they are, or refused by name."""

from __future__ import annotations

import copy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from sacglam import load_policy
from sacglam.errors import CandidateError, ConfigError, UnknownModelError, UnsupportedModelError
from sacglam.models.given import prepare
from sacglam.models.loading import LoraOptions, load_language_model
from sacglam.models.policy import Policy, PolicyOptions
from sacglam.models.self_check import has_own_forward
from sacglam.models.trunk import set_attention
from sacglam.text import PromptTemplate, TextCodec
from torch import nn
from transformers import ArceeConfig, ArceeForCausalLM, LlamaModel

VERSIONS = {name: Version(version(name)) for name in ("peft", "transformers")}
PROMPTS = ["a b c", "you see red lion ."]
CANDIDATES = [["go", "go to", "grasp red lion"], ["release", "go to blue"]]


def stock_log_probs(model: Any, tokenizer: Any) -> list[list[float]]:
    """One forward pass of the model itself for every pair; before a policy is made of it."""
    pairs = model.config.is_encoder_decoder
    codec = TextCodec(tokenizer, PromptTemplate(), encoder_decoder=pairs)
    found = []
    for prompt, actions in zip(PROMPTS, CANDIDATES, strict=True):
        begin = codec.text(prompt).tolist()
        rows = []
        for action in actions:
            ids = codec.action(action).tolist()
            if pairs:
                decoder = torch.tensor([[model.config.decoder_start_token_id, *ids]])
                ask = {"input_ids": torch.tensor([begin]), "decoder_input_ids": decoder}
            else:
                ask = {"input_ids": torch.tensor([[*begin, *ids]])}
            first = 0 if pairs else len(begin) - 1
            log_p = model(**ask).logits[0].log_softmax(-1)
            rows.append(sum(float(log_p[first + i, t]) for i, t in enumerate(ids)))
        found.append(rows)
    return found


def assert_scores_are_its_own(model: Any, tokenizer: Any, attn: str = "fast") -> Policy:
    with torch.no_grad():
        want = stock_log_probs(model, tokenizer)
    policy = Policy(model, tokenizer, options=PolicyOptions(attn=attn))
    for row, mine in zip(want, policy.score(PROMPTS, CANDIDATES), strict=True):
        assert mine.log_probs.tolist() == pytest.approx(row, rel=1e-5)
    return policy


def noisy(model: Any) -> Any:
    """With adapters that are not zero, and whole modules that are not the base's."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("attn", ["fast", "reference"])
def test_unchanged(make_model: Any, architecture: str, attn: str):
    policy = assert_scores_are_its_own(*make_model(architecture), attn)
    layers = [m for m in policy.model.modules() if type(m).__name__.endswith(("Layer", "Block"))]
    fused = [layer for layer in layers if "sacglam_original" in vars(layer)]
    assert len(fused) == (0 if attn == "reference" or architecture == "gpt2" else len(layers))


@pytest.mark.parametrize("attn", ["fast", "reference"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_layer_that_was_copied(make_model: Any, kind: str, attn: str):
    """Its copy of the configuration knows nothing of the pack."""
    model, tokenizer = make_model(kind)
    layers = model.base_model.layers if kind == "llama" else model.transformer.h
    layers.append(copy.deepcopy(layers[0]))
    for index, layer in enumerate(layers):
        (layer.self_attn if kind == "llama" else layer.attn).layer_idx = index
    model.config.num_hidden_layers = 3
    assert_scores_are_its_own(model, tokenizer, attn)


@pytest.mark.parametrize("attn", ["fast", "reference"])
@pytest.mark.parametrize(
    ("kind", "modules"),
    [
        ("gpt2", ["attn"]),
        ("llama", ["self_attn"]),
        ("llama", ["mlp", "norm"]),
        ("gemma", ["input_layernorm"]),
        ("qwen3", ["q_norm", "lm_head"]),
        ("flan-t5", ["DenseReluDense"]),
        ("t5", ["layer_norm"]),
    ],
)
def test_modules_that_peft_trains_whole(make_model: Any, kind: str, modules: list[str], attn: str):
    if modules == ["self_attn"] and VERSIONS["peft"] < Version("0.20"):
        pytest.skip("peft below 0.20 calls such a module without its keywords")
    model, tokenizer = make_model(kind)
    targets = {"gpt2": ["c_attn"], "flan-t5": ["q"], "t5": ["q"]}.get(kind, ["q_proj"])
    if modules == ["attn"]:
        targets = ["c_fc"]
    if modules == ["self_attn"]:
        targets = ["up_proj"]
    config = LoraConfig(r=2, target_modules=targets, modules_to_save=modules)
    assert_scores_are_its_own(noisy(get_peft_model(model, config)), tokenizer, attn)


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("llama", ["embed_tokens", "q_proj", "gate_proj", "o_proj"]),
        ("t5", ["relative_attention_bias", "k"]),
        ("flan-t5", ["wi_0", "wo"]),
    ],
)
def test_adapters_anywhere(make_model: Any, kind: str, targets: list[str]):
    model, tokenizer = make_model(kind)
    model = noisy(get_peft_model(model, LoraConfig(r=2, target_modules=targets)))
    policy = assert_scores_are_its_own(model, tokenizer)
    scores = policy.forward(policy.pack_texts(PROMPTS, CANDIDATES, leaves=True))
    (scores.log_pi.masked_fill(~scores.mask, 0.0).sum() + scores.q.sum()).backward()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            assert parameter.grad is not None, name
            assert bool(parameter.grad.abs().sum() > 0), name


def test_hooks_and_parts_of_ones_own(make_model: Any):
    model, tokenizer = make_model("llama")
    hooked = model.base_model.layers[0].mlp
    hooked.register_forward_hook(lambda module, args, out: 0.5 * out)

    class Own(nn.Module):
        def __init__(self, mlp: nn.Module) -> None:
            super().__init__()
            self.act_fn = nn.SiLU()
            self.inner = mlp

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).tanh()

    model.base_model.layers[1].mlp = Own(model.base_model.layers[1].mlp)
    assert_scores_are_its_own(model, tokenizer)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("flan-t5", "encoder.block.0.layer.0.layer_norm"),
        ("flan-t5", "encoder.block.0.layer.1.DenseReluDense"),
        ("flan-t5", "encoder.block.0.layer.0.SelfAttention.q"),
        ("flan-t5", "decoder.final_layer_norm"),
        ("llama", "model.layers.0.mlp"),
        ("llama", "model.norm"),
    ],
)
def test_forward_methods_of_ones_own(make_model: Any, kind: str, path: str):
    model, tokenizer = make_model(kind)
    module = model.get_submodule(path)
    own = module.forward
    module.forward = lambda x: 0.5 * own(x).tanh()
    assert_scores_are_its_own(model, tokenizer)
    set_attention(model, "sdpa")  # and by a second policy
    assert_scores_are_its_own(model, tokenizer)


def test_the_reference_runs_the_models_own_layers_after_a_fast_policy(make_model: Any):
    model, tokenizer = make_model("qwen2")
    before = [m.forward.__func__ for m in model.modules()]
    Policy(model, tokenizer)
    Policy(model, tokenizer, options=PolicyOptions(attn="reference"))
    assert [m.forward.__func__ for m in model.modules()] == before


def test_another_attention_can_be_set_again(make_model: Any):
    # transformers below 5.20 leaves T5's stacks out.
    for kind in ("t5", "llama") if VERSIONS["transformers"] >= Version("5.20") else ("llama",):
        model, tokenizer = make_model(kind)
        with torch.no_grad():
            before = stock_log_probs(model, tokenizer)
            Policy(model, tokenizer)
            model.set_attn_implementation("sdpa")
            after = stock_log_probs(model, tokenizer)
        for a, b in zip(before, after, strict=True):
            assert a == pytest.approx(b, rel=1e-6)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_forward_pass_of_ones_own_that_changes_no_score(make_model: Any, kind: str):
    model, tokenizer = make_model(kind)
    calls: list[int] = []

    class Logging(type(model)):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return super().forward(*args, **kwargs)

    model.__class__ = Logging
    assert_scores_are_its_own(model, tokenizer)
    assert calls
    calls.clear()
    Policy(model, tokenizer)  # once more: its attention is ours by now
    assert len(calls) == 2


# --- refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["subclass", "method", "hook"])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_a_forward_pass_that_changes_scores_is_refused(
    make_model: Any, kind: str, adapted: bool, how: str
):
    model, tokenizer = make_model(kind)
    assert not has_own_forward(model)

    def colder(out: Any) -> Any:
        out.logits = out.logits / 0.7
        return out

    if how == "subclass":

        class Colder(type(model)):
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                return colder(super().forward(*args, **kwargs))

        model.__class__ = Colder
    elif how == "method":
        own = model.forward
        model.forward = lambda *args, **kwargs: colder(own(*args, **kwargs))
    else:
        model.register_forward_hook(lambda module, args, out: colder(out))
    given = (
        get_peft_model(model, LoraConfig(r=2, target_modules="all-linear")) if adapted else model
    )
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="forward pass of its own"):
            Policy(given, tokenizer)


def test_a_head_that_is_more_than_a_matrix_is_refused(make_model: Any):
    model, tokenizer = make_model("llama")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head", "q_proj"]))
    with pytest.raises(UnsupportedModelError, match="language-model head is more than a matrix"):
        Policy(adapted, tokenizer)
    model, tokenizer = make_model("llama")
    model.lm_head = nn.Linear(32, len(tokenizer)).double()
    with pytest.raises(UnsupportedModelError, match="a bias or a hook"):
        Policy(model, tokenizer)
    model, tokenizer = make_model("llama")
    own = model.lm_head.forward
    model.lm_head.forward = lambda x: own(x).tanh()
    with pytest.raises(UnsupportedModelError, match="a method of its own"):
        Policy(model, tokenizer)

    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    model, tokenizer = make_model("llama")
    model.lm_head = Doubled(32, len(tokenizer), bias=False).double()
    with pytest.raises(UnsupportedModelError, match=r"more than a matrix \(Doubled"):
        Policy(model, tokenizer)
    model, tokenizer = make_model("llama", torch.bfloat16)
    for _ in range(2):  # ours around the head is none of its own
        Policy(model, tokenizer)
    with pytest.raises(UnsupportedModelError, match="LlamaModel has no language-model head"):
        Policy(LlamaModel(model.config), tokenizer)


def test_virtual_tokens_are_refused(make_model: Any):
    model, tokenizer = make_model("llama", torch.float32)
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(UnsupportedModelError, match="adds virtual tokens"):
        Policy(get_peft_model(model, config), tokenizer)


def test_attention_in_both_directions_is_refused(make_model: Any):
    model, tokenizer = make_model("llama")
    model.config.is_causal = False
    with pytest.raises(UnsupportedModelError, match="both directions"):
        Policy(model, tokenizer)


def test_longrope_knows_prompts_up_to_where_its_frequencies_change(make_model: Any):
    """Beyond it the scores of short prompts would depend on the longest one of the batch."""
    model, tokenizer = make_model("llama")
    policy = Policy(model, tokenizer)
    assert policy.trunk.max_length == 256
    model.config.rope_parameters = {
        "rope_type": "longrope", "original_max_position_embeddings": 24,
    }  # fmt: skip
    assert policy.trunk.max_length == 24


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(make_model: Any):
    model, tokenizer = make_model("llama")
    tokenizer.add_tokens(["dragon"])
    with pytest.raises(ConfigError, match=r"resize_token_embeddings\(\d+\)"):
        Policy(model, tokenizer)


def test_one_text_in_the_place_of_a_list_of_candidates_is_refused(make_policy: Any):
    with pytest.raises(CandidateError, match="'go', one text: give a list"):
        make_policy("llama").score(["a b"], ["go"])


def test_an_unsupported_type_is_named_before_its_weights_are_read(tmp_path: Path, make_model: Any):
    _, tokenizer = make_model("llama")
    config = ArceeConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = ArceeForCausalLM(config)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="'arcee' are not supported"):
        load_language_model(tmp_path, lora=LoraOptions())
    given = {"critic_adapter": False, "dtype": "float32", "device": "cpu"}
    with pytest.raises(UnsupportedModelError, match="'arcee' are not supported"):
        prepare(model, lora=LoraOptions(), **given)


def test_weights_that_are_missing_are_named(tmp_path: Path, make_model: Any):
    """transformers would make them up at random."""
    model, tokenizer = make_model("llama", torch.float32)
    model.base_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UnknownModelError, match=r"lack lm_head\.weight"):
        load_policy(tmp_path)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_adapters_that_change_the_base_are_saved_with_it(
    make_model: Any, tmp_path: Path, start: str
):
    model, tokenizer = make_model("llama", torch.float32)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=start)
    policy = Policy(get_peft_model(model, config).eval(), tokenizer)
    want = policy.score(PROMPTS, CANDIDATES)
    policy.save(tmp_path / "policy")
    got = load_policy(tmp_path / "policy").score(PROMPTS, CANDIDATES)
    for a, b in zip(want, got, strict=True):
        assert a.log_probs.tolist() == pytest.approx(b.log_probs.tolist(), rel=1e-4)
    with pytest.raises(ConfigError, match="sac.prior needs the frozen model itself"):
        policy.prior(policy.pack_texts(PROMPTS, CANDIDATES, leaves=False))


def test_a_model_whose_adapters_were_switched_off_is_trained_with_them(make_model: Any):
    model, _ = make_model("llama", torch.float32)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.disable_adapter_layers()
    given = {"critic_adapter": False, "dtype": "float32", "device": "cpu"}
    ready = prepare(model, lora=None, **given)
    layer = ready.base_model.model.model.layers[0].self_attn.q_proj
    assert not layer.disable_adapters
    assert layer.lora_A["default"].weight.requires_grad
