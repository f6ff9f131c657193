"""Acting by CUDA graphs on the GPU: checked against the plain pass, and timed beside it, from token
ids to actions on the host."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import device_checkout  # noqa: F401  first: it makes sacglam importable
import device_workloads as workloads
import numpy as np
import torch
from device_checks import relative
from device_kernels import Method, Prepare, Record
from device_model_checks import VOCAB, small_qwen, small_t5
from device_models import qwen_config

CANDIDATES, LENGTH = 12, 5
WORDS = 200  # that actions are made of
Batch = tuple[Any, Any, Any]  # arguments of Policy.pack


def make_policy(config: Any, dtype: torch.dtype, *, critic: bool = False) -> Any:
    """A policy on the GPU around a random model with LoRA of rank 16, its two halves random."""
    from sacglam.models.loading import LoraOptions, add_lora
    from sacglam.models.policy import Policy, PolicyOptions
    from sacglam.models.tiny import build_tokenizer
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device(workloads.DEVICE):
        model = kind.from_config(config, dtype=dtype)
        model = add_lora(model, LoraOptions(r=16), critic)
    model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    tokenizer = build_tokenizer(f"w{k}" for k in range(WORDS))
    options = PolicyOptions(critic_trunk="adapter" if critic else "shared", temperature=5.0)
    return Policy(model, tokenizer, options=options)


def random_batch(policy: Any, seed: int, prompts: int, length: int, vocab: int = VOCAB) -> Batch:
    """Prompts of about `length` tokens with one of three sets of candidates each."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(length * 9 // 10, length * 11 // 10 + 1, prompts)
    ids = rng.integers(4, vocab, lengths.sum()).astype(np.int32)
    sets = []
    for first in (0, 50, 100):
        words = np.random.default_rng(first).integers(0, WORDS, (CANDIDATES, LENGTH - 1))
        sets.append(
            policy.candidate_set(
                [
                    " ".join([f"w{first + k}", *(f"w{w}" for w in words[k])])
                    for k in range(CANDIDATES)
                ]
            )
        )
    chosen = [sets[k] for k in rng.integers(0, len(sets), prompts)]
    return ids, np.cumsum([0, *lengths], dtype=np.int64), chosen


def errors_of(policy: Any, batch: Batch) -> dict[str, float]:
    """What acting by a graph makes of a batch, against the plain pass over the unpadded forest; and
    whether a graph was used."""
    forest = policy.pack(*batch, leaves=False, device="cpu")
    got = policy.acting_scores(forest)
    by_graph = policy._graphs.scores(forest)
    with torch.no_grad():
        want = policy.forward(forest.to(policy.device), with_q=False).cpu()
    return {
        "log p": relative(got.log_prob, want.log_prob),
        "log pi": relative(got.log_pi, want.log_pi),
        "log p, again": 1.0 if by_graph is None else relative(by_graph.log_prob, want.log_prob),
        "mask": float((got.mask != want.mask).sum()),
    }


def worst(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: max(errors[name] for errors in found) for name in found[0]}


def update(policy: Any, batch: Batch) -> None:
    """One step of an optimizer that moves every adapter."""
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    scores = policy.forward(policy.pack(*batch))
    (scores.entropy.sum() + scores.q.square().mean()).backward()
    optimizer.step()
    optimizer.zero_grad()


def check_graphs(report: Callable[..., None]) -> None:
    """Random batches of equal and of different sizes, before and after the weights change. A
    recording that fails breaks the section with its reason."""
    cases = {
        "Qwen2, 3 layers": (small_qwen(), False),
        "Qwen2, 3 layers, critic's adapter": (small_qwen(), True),
        "T5, 3 + 3 layers": (small_t5(), False),
    }
    for name, (config, critic) in cases.items():
        policy = make_policy(config, torch.float32, critic=critic)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "no CUDA graph", RuntimeWarning)
            check_policy(policy, name, report)


def check_policy(policy: Any, name: str, report: Callable[..., None]) -> None:
    batches = [  # five of one size, then one of each of four others
        *(random_batch(policy, seed, 8, 70) for seed in range(5)),
        *(random_batch(policy, seed, rows, 40 * rows) for seed, rows in ((5, 1), (6, 3), (7, 6))),
        random_batch(policy, 8, 24, 70),
    ]
    for batch in batches:
        for _ in range(2):  # whatever its size is, it is recorded by then
            policy.choose(policy.pack(*batch, leaves=False, device="cpu"))
    count, case = len(policy._graphs), f"{name}, float32"
    report("graphs", case, worst([errors_of(policy, b) for b in batches]), 1e-4)

    forest = policy.pack(*batches[0], leaves=False, device="cpu")
    before = policy.acting_scores(forest)
    update(policy, batches[0])
    errors = worst([errors_of(policy, b) for b in batches])
    after = policy.acting_scores(forest)
    errors["recorded again"] = float(len(policy._graphs) != count)
    errors["unchanged"] = float(relative(after.log_prob, before.log_prob) < 1e-3)
    report("graphs", f"{case}, after an update", errors, 1e-4)

    generator = torch.Generator().manual_seed(0)
    chosen = policy.choose(forest, generator=generator)
    generator.manual_seed(0)
    by_graph, policy.options = policy.options, replace(policy.options, cuda_graphs=False)
    plain = policy.choose(forest, generator=generator)
    policy.options = by_graph
    # A draw may differ where a number lies on the edge between two actions.
    report("graphs", f"{case}, actions", {"differ": float((chosen != plain).double().mean())}, 0.2)


def time_graphs(record: Record) -> None:
    """Acting with Qwen2.5-0.5B's sizes in bfloat16: packing, scoring, drawing, and the actions on
    the host."""
    spec = workloads.QWEN
    policy = make_policy(qwen_config(), torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    by_graph = policy.options
    plainly = replace(by_graph, cuda_graphs=False)
    for prompts in (16, 32):
        for length in (60, 150):
            batch = random_batch(policy, prompts + length, prompts, length, spec.vocab)

            def act(options: Any, batch: Batch = batch) -> list[int]:
                policy.options = options
                forest = policy.pack(*batch, leaves=False, device="cpu")
                return policy.choose(forest, generator=generator).tolist()

            def ready(act: Callable[[Any], list[int]] = act) -> Method:
                for _ in range(2):
                    act(by_graph)
                return lambda: act(by_graph)

            def replay(ready: Callable[[], Method] = ready) -> Method:
                ready()
                return list(policy._graphs.graphs._recorded.values())[-1].replay

            methods = {
                "plain pass": lambda act=act: act(plainly),
                "sacglam": Prepare(ready),
                "the graph alone": Prepare(replay),
            }
            case = f"{spec.name}, LoRA 16, {prompts} prompts of {length} tokens"
            record("act", case, methods, None, slow=True)
