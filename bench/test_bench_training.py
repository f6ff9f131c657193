"""Training on one CPU thread: a whole gradient update and a step of acting at the demo's size, and
a LoRA step (forward and backward) on the batch of the scoring suite.

At the demo's size the rival is the same learner, losses, optimiser and target over a forward pass
that repeats the prompt for every candidate and lets the stock model run over the padded rows: only
the passes differ. The LoRA step's rivals are those of the scoring suite. Policy, Q and gradients
must agree before anything is timed. Times are CPU times of the one thread that computes.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sacglam import Policy, Trainer, make_env
from sacglam.kernels.cpu import multiplies_bfloat16
from sacglam.models.critics import candidates_of
from sacglam.models.loading import load_language_model
from sacglam.models.scoring import Scores
from sacglam.training.demo import demo_config
from sacglam.training.episode import Episode, choose_actions
from sacglam.training.learner import Learner
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parent))

from scoring_floor import executed_flops  # noqa: E402
from scoring_rivals import LAMOREL, RIVALS, Score  # noqa: E402
from scoring_work import (  # noqa: E402
    Work,
    build_work,
    name_of,
    ours,
    sizes_of,
)

CPU = time.thread_time  # all of it in one thread


@dataclass(frozen=True)
class Repeated:
    """B prompts x up to A candidates as N padded rows, one a candidate."""

    ids: Tensor  # [N, L], the prompt (and for causal models its candidate)
    filled: Tensor  # [N, L]
    tokens: Tensor  # [N, l], the candidate
    used: Tensor  # [N, l]
    before: Tensor  # [N], place in L of the last token before the candidate
    mask: Tensor  # bool [B, A]

    def to(self, device: torch.device) -> Repeated:
        assert device.type == "cpu"
        return self


class RepeatedPolicy:
    """What the learner needs of a policy, computed by a stock model over repeated prompts."""

    on_gpu_kernels = False

    def __init__(self, policy: Policy, folder: str) -> None:
        self.model, _ = load_language_model(folder)
        self.model.load_state_dict(policy.model.state_dict())
        self.heads = copy.deepcopy(policy.heads)
        self.codec, self.options = policy.codec, policy.options
        self.candidate_set = policy.candidate_set
        self.device, self.dtype = policy.device, policy.dtype

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        named = {f"model.{n}": p for n, p in self.model.named_parameters()}
        return named | {f"heads.{n}": p for n, p in self.heads.named_parameters()}

    def pack(
        self, prompts, offsets, sets, *, leaves=True, rows=None, taken=None, device=None
    ) -> Repeated:
        where = range(len(sets)) if rows is None else rows.tolist()
        texts = [prompts[offsets[b] : offsets[b + 1]].tolist() for b in where]
        each = [[ids.tolist() for ids in candidates_of(sets[b])] for b in where]
        pairs = [(p, c) for p, cs in zip(texts, each, strict=True) for c in cs]
        encoder = self.model.config.is_encoder_decoder
        ids, filled = _pad([p if encoder else p + c for p, c in pairs])
        tokens, used = _pad([c for _, c in pairs])
        most = max(map(len, each))
        return Repeated(
            ids, filled, tokens, used,
            torch.tensor([len(p) - 1 for p, _ in pairs]),
            torch.arange(most) < torch.tensor([len(cs) for cs in each])[:, None],
        )  # fmt: skip

    def forward(self, batch: Repeated, *, with_q: bool = True) -> Scores:
        n, length = batch.tokens.shape
        row = torch.arange(n)
        last = batch.used.sum(-1)
        if self.model.config.is_encoder_decoder:
            start = torch.full((n, 1), self.model.config.decoder_start_token_id)
            out = self.model(
                input_ids=batch.ids, attention_mask=batch.filled, use_cache=False,
                decoder_input_ids=torch.cat([start, batch.tokens], 1), output_hidden_states=True,
            )  # fmt: skip
            logits, leaf = out.logits[:, :-1], out.decoder_hidden_states[-1][row, last]
        else:
            hidden = self.model.model(
                input_ids=batch.ids, attention_mask=batch.filled, use_cache=False
            ).last_hidden_state
            where = batch.before[:, None] + torch.arange(length)
            rows = hidden[row[:, None], where.clamp(max=hidden.shape[1] - 1)]
            logits, leaf = self.model.lm_head(rows), hidden[row, batch.before + last]
        found = logits.log_softmax(-1).gather(-1, batch.tokens[..., None]).squeeze(-1)
        score = _table((found * batch.used).sum(-1), batch.mask)
        log_pi = score.masked_fill(~batch.mask, -torch.inf).log_softmax(-1)
        q = None
        if with_q:
            q = torch.stack([_table(values, batch.mask) for values in self.heads(leaf)])
        return Scores(score, log_pi.masked_fill(~batch.mask, 0.0), log_pi.exp(), q, batch.mask)

    def acting_scores(self, batch: Repeated) -> Scores:
        with torch.no_grad():
            return self.forward(batch, with_q=False)

    choose = Policy.choose  # the same sampling from those


def _pad(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(length) < lengths[:, None]).long()


def _table(values: Tensor, present: Tensor) -> Tensor:
    """[N] -> [B, A], 0 where there is no candidate."""
    return values.new_zeros(present.shape).masked_scatter(present, values)


@dataclass(frozen=True)
class Setup:
    trainer: Trainer
    rival: RepeatedPolicy

    @property
    def case(self) -> str:
        config = self.trainer.config
        return f"{config.model.id} on {config.env.id}"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["tiny-llama", "tiny-t5"])
def prepared(request, tmp_path, quick) -> Setup:
    """The demo's trainer with some episodes in its replay buffer, and the rival's policy."""
    config = demo_config(tmp_path / "run", 0).with_overrides(
        {"model.id": request.param, "device": "cpu"} | ({"optim.batch_size": 16} if quick else {})
    )
    trainer = Trainer(config)
    trainer.algorithm.collector.start()
    for _ in range(20 if quick else 60):
        trainer.algorithm.collector.step()
    trainer.policy.save_base(tmp_path / "stock")
    rival = RepeatedPolicy(trainer.policy, str(tmp_path / "stock"))
    return Setup(trainer, rival)


def _gradients(policy: Any, scores: Scores) -> dict[str, Tensor]:
    """Of something that reaches every log-probability and every Q."""
    loss = scores.log_prob.mean() + scores.log_pi.square().mean() + scores.q.sin().mean()
    named = policy.trainable_parameters()
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def _agree(setup: Setup) -> None:
    batch = setup.trainer.algorithm.buffer.sample(16)
    sets = setup.trainer.algorithm.texts.policy_sets(batch.candidates)
    found = []
    for policy in (setup.trainer.policy, setup.rival):
        scores = policy.forward(policy.pack(batch.prompt_ids, batch.prompt_offsets, sets))
        found.append({"log_prob": scores.log_prob, "log_pi": scores.log_pi, "q": scores.q}
                     | _gradients(policy, scores))  # fmt: skip
    for name, value in found[0].items():
        scale = float(value.detach().abs().max())
        torch.testing.assert_close(
            found[1][name], value, rtol=1e-3, atol=1e-4 * max(scale, 1e-6),
            msg=lambda text, name=name: f"the rival's {name} disagrees: {text}",
        )  # fmt: skip


def test_update(compare, peak_bytes, prepared):
    _agree(prepared)
    trainer = prepared.trainer
    sac = trainer.algorithm
    rival = Learner(prepared.rival, sac.buffer, sac.texts, trainer.config)  # type: ignore[arg-type]
    methods = {"sacglam": sac.learner.update, "prompt repeated": rival.update}
    peaks = {name: peak_bytes(run) for name, run in methods.items()}
    size = trainer.config.optim.batch_size
    compare(f"update of {size}, {prepared.case}", methods, peak_bytes=peaks, clock=CPU)


def test_acting(compare, prepared):
    config = prepared.trainer.config
    episodes = []
    for k in range(config.env.num_envs):
        episode = Episode(k, k)
        episode.begin(*make_env(config.env.id).reset(seed=k))
        episodes.append(episode)

    def act(policy: Any) -> list[int]:
        return choose_actions(policy, episodes, greedy=True)

    assert act(prepared.trainer.policy) == act(prepared.rival)
    compare(
        f"acting in {len(episodes)} environments, {prepared.case}",
        {
            "sacglam": lambda: act(prepared.trainer.policy),
            "prompt repeated": lambda: act(prepared.rival),
        },
        clock=CPU,
    )


def _lora_gradients(work: Work, model: nn.Module, score: Score) -> list[Tensor]:
    """Of a policy-gradient-like loss: the policy over the candidates, weighed by their places. Of
    scores as they are, an untrained T5's policy is one candidate, and all gradients are zero."""
    scores = score(work)
    pi = (scores / scores.detach().std()).softmax(-1)
    loss = (pi * torch.linspace(-1.0, 1.0, pi.shape[1])).sum()
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


def _compare_steps(compare, case, methods, peaks, quick) -> None:
    compare(
        case,
        methods,
        peak_bytes=peaks,
        flops={name: executed_flops(step) for name, step in methods.items()},
        rounds=None if quick else 3,
        clock=CPU,
    )


@pytest.mark.parametrize("kind", ["T5", "Llama"])
def test_lora_step(compare, peak_bytes, quick, kind):
    """Forward and backward to adapters of rank 16 on queries and values."""
    sizes = sizes_of(kind, quick, 4 if quick else 16)
    work = build_work(kind, sizes, lora=True)
    methods = {
        name: lambda score=score, model=model: _lora_gradients(work, model, score)
        for name, score, model in [
            ("sacglam", ours, work.policy.model),
            *((name, score, work.stock) for name, score in RIVALS[kind].items()),
        ]
    }
    expected = methods["sacglam"]()
    peaks = {}
    for name, step in methods.items():
        for found, ours_found in zip(step(), expected, strict=True):
            scale = float(ours_found.abs().max())
            torch.testing.assert_close(
                found, ours_found, rtol=1e-3, atol=1e-3 * max(scale, 1e-6),
                msg=lambda text, name=name: f"the gradients of {name} disagree: {text}",
            )  # fmt: skip
        peaks[name] = peak_bytes(step)
    _compare_steps(compare, f"LoRA step, {name_of(kind, sizes)}", methods, peaks, quick)


@pytest.mark.parametrize("kind", ["T5", "Llama"])
def test_lora_step_bfloat16(compare, peak_bytes, quick, kind):
    """The same with weights in bfloat16, adapters in float32. Few prompts where the CPU has no
    instructions for it: see the scoring suite."""
    sizes = sizes_of(kind, quick, (4 if quick else 16) if multiplies_bfloat16() else 2)
    half = build_work(kind, sizes, dtype=torch.bfloat16, lora=True)
    full = build_work(kind, sizes, lora=True)
    lamorel = LAMOREL[kind]
    methods = {
        "sacglam": lambda: _lora_gradients(half, half.policy.model, ours),
        "lamorel's best mode": lambda: _lora_gradients(half, half.stock, lamorel),
        "sacglam, float32": lambda: _lora_gradients(full, full.policy.model, ours),
        "lamorel's best mode, float32": lambda: _lora_gradients(full, full.stock, lamorel),
    }
    peaks = {}
    expected = _joined(methods["sacglam, float32"]())
    for name, step in methods.items():
        error = float((_joined(step()) - expected).norm() / expected.norm())
        assert error < 0.1, f"the gradients of {name} disagree: by {error:.3f} of their norm"
        peaks[name] = peak_bytes(step)
    case = f"LoRA step in bfloat16, {name_of(kind, sizes)}"
    _compare_steps(compare, case, methods, peaks, quick)


def _joined(gradients: list[Tensor]) -> Tensor:
    return torch.cat([gradient.float().flatten() for gradient in gradients])
