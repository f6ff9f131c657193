"""The policy: a language model that scores candidate actions, with the critic's heads beside it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .._C import CandidateSet, ForestPacker
from ..errors import CandidateError, ConfigError, UnsupportedModelError
from ..kernels import triton_serves
from ..text import PromptTemplate, TextCodec
from . import saved
from .base import save_base
from .critics import first_states, prompts_with_actions, reencoded_values
from .device import on_device
from .forest import Forest, forest_from_packed
from .given import refuse_changed_base
from .graphs import ActingGraphs, Releasable, acting_graphs, with_room
from .heads import QHeads
from .loading import ONE_AT_A_TIME
from .options import PolicyOptions
from .scoring import Scores, candidate_policy, values_over
from .self_check import refuse_other_scores, scores_by_own_forward
from .trunk import make_trunk

# A shorter beginning is not worth a tree of its own.
SHARED_TOKENS = 16
# How many lists of actions are remembered: some tens of megabytes where all are different.
REMEMBERED_SETS = 1 << 14


class CandidateScore(NamedTuple):
    """Scores of one prompt's candidates, each float32 [K] (q: the minimum over the Q heads; None
    for a policy trained by PPO, which has no Q)."""

    log_probs: npt.NDArray[np.float32]
    log_pi: npt.NDArray[np.float32]
    q: npt.NDArray[np.float32] | None


class Policy:
    """A language model that scores candidate actions given a prompt, and their Q values.

    Args:
        model: a Hugging Face model, possibly wrapped by peft. Its dropout is switched off.
        tokenizer: its tokenizer.
        template: the prompt's segments, for the trainer; `score` takes whole prompts.
        options: how scores and values are computed.
        name: the base model's id or folder; saved, so that a LoRA policy can be loaded again. If it
            has none, the base itself is saved.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        template: PromptTemplate | None = None,
        options: PolicyOptions | None = None,
        name: str = "",
    ) -> None:
        self.model = model.eval()  # scores must be the same function in every pass
        self.tokenizer = tokenizer
        self.options = options or PolicyOptions()
        self.name = name
        own_scores = scores_by_own_forward(model, self.options)
        self.trunk = make_trunk(model, self.options.attn)
        self.codec = TextCodec(
            tokenizer, template or PromptTemplate(), encoder_decoder=self.trunk.encoder_decoder
        )
        self.heads = QHeads(self.trunk.hidden_size, self.options.q_layers, self.options.q_heads)
        self.heads.to(device=self.device, dtype=torch.promote_types(self.dtype, torch.float32))
        self.packer = ForestPacker(self.trunk.decoder_start)
        self._refuse_unknown_tokens()
        # Not of `self`: what refers to itself is freed late, and a model is large.
        self._remembered_sets = lru_cache(REMEMBERED_SETS)(partial(_make_set, self.codec))
        self.reencodes = self.options.critic == "reencode" and self.trunk.encoder_decoder
        self._opening = len(self.codec.opening())
        self._graphs: ActingGraphs | None = None
        self._value_graphs: ActingGraphs | None = None
        self._others: WeakSet[Releasable] = WeakSet()
        self._trained = [p for p in model.parameters() if p.requires_grad]
        if self.options.critic_trunk == "adapter" and "critic" not in getattr(
            model, "peft_config", {}
        ):
            raise ConfigError(
                "critic.trunk = 'adapter' needs LoRA adapters: set lora.r above 0, or use 'shared'"
            )
        if own_scores is not None:
            refuse_other_scores(self, own_scores)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def on_gpu_kernels(self) -> bool:
        """Whether it computes by Triton's kernels: on CUDA of compute capability 8.0 or more, with
        the fast attention, not in float64."""
        fast = self.device.type == "cuda" and self.options.attn == "fast"
        return fast and triton_serves(self.dtype, self.device)

    @property
    def is_lora(self) -> bool:
        return hasattr(self.model, "peft_config")

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, adapters (or the whole model) and heads, by name."""
        named = {f"model.{n}": p for n, p in self.model.named_parameters() if p.requires_grad}
        named.update({f"heads.{n}": p for n, p in self.heads.named_parameters()})
        return named

    def keep_with(self, graphs: Releasable) -> None:
        """Note who else keeps CUDA graphs of its passes, to release them with its own."""
        self._others.add(graphs)

    @property
    def has_graphs(self) -> bool:
        """Whether CUDA graphs of its passes take memory."""
        return any(map(len, self._kept()))

    def release_graphs(self) -> None:
        """Forget all CUDA graphs of its passes, and give their memory back."""
        for graphs in self._kept():
            graphs.release()

    def _kept(self) -> list[Releasable]:
        own = (self._graphs, self._value_graphs)
        return [graphs for graphs in (*own, *self._others) if graphs is not None]

    # --- packed interface ---------------------------------------------------------------------

    def candidate_set(self, actions: Sequence[str]) -> CandidateSet:
        """An ordered list of actions as `pack` takes it; recent ones are remembered.

        Raises:
            CandidateError: empty list, duplicates, or actions that are equal as tokens.
        """
        return self._remembered_sets(tuple(actions))

    def pack(
        self,
        prompts: npt.NDArray[np.int32],
        offsets: npt.NDArray[np.int64],
        sets: Sequence[CandidateSet],
        *,
        leaves: bool = True,
        rows: npt.NDArray[np.int64] | None = None,
        taken: npt.NDArray[np.integer] | None = None,
        device: torch.device | str | None = None,
    ) -> Forest:
        """Concatenated prompt ids [*], offsets [B + 1] and candidate sets [B] as one forest.

        leaves: whether to run the candidates' last tokens, which Q needs and the policy does not
            (nor does V), or whatever else a critic needs for Q.
        rows: pack only these prompts of the batch.
        taken: the candidate of each prompt [B] whose Q alone needs a gradient; of use to a critic
            that reencodes, whose passes with gradient are one a prompt then.
        device: where the forest is made; None: where the policy is. For `choose`, the CPU.
        """
        kept = leaves and not self.reencodes and self.options.critic != "value"
        shared = self._shared_tokens()
        packed = self.packer.pack(prompts, offsets, sets, kept, rows, shared)
        device = self.device if device is None else device
        forest = forest_from_packed(packed, device)
        self.trunk.check_length(forest, leaves=kept)
        if leaves and self.reencodes:
            batch = (prompts, offsets, sets, rows)
            forest = replace(forest, reencoded=self._reencoded(*batch, device=device))
            if taken is not None:
                column = torch.from_numpy(taken if rows is None else taken[rows]).long()
                forest = replace(
                    forest,
                    taken=self._reencoded(*batch, taken, device=device),
                    taken_column=column.to(device),
                )
        return forest

    def _shared_tokens(self) -> int:
        """How many tokens all of the trainer's prompts begin with, where computing them once pays:
        a GPU's kernels do, the CPU's attend tree by tree."""
        pays = self.on_gpu_kernels and self._opening >= SHARED_TOKENS
        return self._opening if pays else 0

    def _reencoded(
        self,
        prompts: npt.NDArray[np.int32],
        offsets: npt.NDArray[np.int64],
        sets: Sequence[CandidateSet],
        rows: npt.NDArray[np.int64] | None,
        taken: npt.NDArray[np.integer] | None = None,
        *,
        device: torch.device | str,
    ) -> Forest:
        """A row for each candidate, or that taken, which is written into the prompt."""
        closing = len(self.codec.suffix)
        ids, starts = prompts_with_actions(prompts, offsets, sets, rows, closing, taken)
        # Nothing is left to choose: any set of one token will do.
        chosen = [CandidateSet(np.zeros(1, dtype=np.int32), np.array([0, 1]))] * (len(starts) - 1)
        return forest_from_packed(self.packer.pack(ids, starts, chosen, False, None), device)

    def forward(self, forest: Forest, *, with_q: bool = True) -> Scores:
        """Scores of all candidates, and what the critic says of them (Q, or V of the prompts), from
        one pass (two for a critic of its own).

        Raises:
            UnsupportedModelError: dropout was switched on again by `model.train()`.
        """
        with on_device(self.device):
            return self._forward(forest, with_q)

    def _forward(self, forest: Forest, with_q: bool) -> Scores:
        self._refuse_dropout()
        separate = self.options.critic_trunk == "adapter"
        with self._adapter("default"):
            hidden = self.trunk.hidden(forest)
        scores = self._policy_over(hidden, forest)
        if not with_q:
            return scores
        if forest.reencoded is not None:
            return replace(scores, q=self._reencoded_q(forest))
        if separate:
            with self._adapter("critic"):
                hidden = self.trunk.hidden(forest)
        elif not self.options.critic_gradient:
            hidden = hidden.detach()
        if self.options.critic == "value":
            return replace(scores, v=self.heads(first_states(hidden, forest))[0])
        assert forest.leaf is not None
        return replace(scores, q=values_over(self.heads(hidden[forest.leaf]), forest))

    def _reencoded_q(self, forest: Forest) -> Tensor:
        """Q of prompts and actions that were encoded afresh, [heads, B, A]."""
        separate = self.options.critic_trunk == "adapter"

        def values(rows: Forest) -> Tensor:
            with self._adapter("critic" if separate else "default"):
                hidden = self.trunk.hidden(rows)
            if not separate and not self.options.critic_gradient:
                hidden = hidden.detach()
            return self.heads(first_states(hidden, rows))

        assert forest.reencoded is not None
        learning = torch.is_grad_enabled()
        with torch.set_grad_enabled(learning and forest.taken is None):
            q = reencoded_values(values(forest.reencoded), forest)
        if learning and forest.taken is not None:
            assert forest.taken_column is not None
            column = forest.taken_column.expand(q.shape[0], -1)[..., None]
            q = q.scatter(-1, column, values(forest.taken)[..., None])
        return q

    def prior(self, forest: Forest) -> Scores:
        """The frozen base model's own distribution over the candidates (adapters off)."""
        if not self.is_lora:
            raise ConfigError("the LLM prior needs LoRA: with full training no base model remains")
        refuse_changed_base(self.model.peft_config)
        try:
            with on_device(self.device), torch.no_grad(), self.model.disable_adapter():
                return self._policy_over(self.trunk.hidden(forest), forest)
        finally:
            self._unfreeze()

    def _policy_over(self, hidden: Tensor, forest: Forest) -> Scores:
        """Hidden states [T, D] to scores without Q."""
        rows = hidden[forest.head_rows]
        if self.trunk.head_scale != 1.0:
            rows = rows * self.trunk.head_scale
        return candidate_policy(
            rows,
            self.trunk.head_weight,
            forest,
            tau=self.options.temperature,
            normalise=self.options.score == "logprob",
            mean=self.options.reduce == "mean",
        )

    def _refuse_unknown_tokens(self) -> None:
        known, needed = self.model.get_input_embeddings().weight.shape[0], len(self.tokenizer)
        if needed > known:
            raise ConfigError(
                f"the tokenizer has {needed} tokens and the model's embedding {known}: call "
                f"model.resize_token_embeddings({needed}), or give the model's own tokenizer"
            )

    def _refuse_dropout(self) -> None:
        """Scores and their gradients would belong to different functions in every pass."""
        if not self.model.training:
            return
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Dropout) and module.training and module.p > 0:
                raise UnsupportedModelError(
                    f"dropout is on (p = {module.p} in {name}): packed scoring needs the same "
                    "scores in every pass; call policy.model.eval()"
                )

    @contextmanager
    def _adapter(self, name: str) -> Iterator[None]:
        """Compute with the named adapter; all adapters stay trainable."""
        if self.options.critic_trunk != "adapter":
            yield
            return
        self.model.set_adapter(name)
        self._unfreeze()
        yield

    def _unfreeze(self) -> None:
        """peft freezes adapters whenever it switches them, also under a graph not yet run back."""
        for parameter in self._trained:
            parameter.requires_grad_(True)

    # --- text interface -----------------------------------------------------------------------

    def prompt(
        self,
        goal: str,
        observation: str,
        history: Sequence[tuple[str, str]] = (),
        actions: Sequence[str] = (),
    ) -> str:
        """The prompt that it was trained with, for `score` and `act` in a loop of one's own.

        Args:
            goal: the goal's text.
            observation: the current one.
            history: earlier (observation, action) pairs of the episode, oldest first; as many are
                shown as in training (`prompt.history`).
            actions: the possible ones; shown if they were in training (`prompt.list_actions`).
        """
        return "".join(self.codec.template.segments(goal, observation, history, actions))

    def score(
        self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> list[CandidateScore]:
        """Log-probabilities, policy and Q of every candidate of every prompt, without gradients.

        Q is None for a policy trained by PPO. With gradients: `pack_texts` and `forward`.

        Args:
            prompts: B whole prompts.
            candidates: B lists of candidate actions, of any lengths.

        Raises:
            CandidateError: an empty or duplicate candidate list, or a prompt that is no text.
            PromptTooLongError: a prompt longer than the model accepts.
        """
        forest = self.pack_texts(prompts, candidates)
        with torch.no_grad():
            out = self.forward(forest)
        q_min = None if out.q is None else out.q.min(0).values
        found = []
        for b, actions in enumerate(candidates):
            k = len(actions)
            log_probs, log_pi = (x[b, :k].cpu().numpy() for x in (out.log_prob, out.log_pi))
            q = None if q_min is None else q_min[b, :k].cpu().numpy()
            found.append(CandidateScore(log_probs, log_pi, q))
        return found

    def act(
        self,
        prompts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        greedy: bool = False,
        generator: torch.Generator | None = None,
    ) -> list[str]:
        """Choose one action per prompt: sampled from the policy, or its most probable one."""
        forest = self.pack_texts(prompts, candidates, leaves=False, device="cpu")
        chosen = self.choose(forest, greedy=greedy, generator=generator)
        return [actions[k] for actions, k in zip(candidates, chosen.tolist(), strict=True)]

    def choose(
        self,
        forest: Forest,
        *,
        greedy: bool = False,
        explore: float = 0.0,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Index of the chosen candidate per row of the forest; int64 [B], on the CPU.

        forest: on any device; CUDA graphs serve those on the CPU. Leaves (`pack`) are not needed.
        greedy: the most probable one; else drawn from (1 - explore) pi' + explore uniform, where
        pi' is pi^(1 / temperature), normalised.
        generator: on any device; what is drawn on the CPU is the same wherever the policy is.
        """
        scores = self.acting_scores(forest)
        if greedy:
            return scores.log_pi.masked_fill(~scores.mask, -torch.inf).argmax(-1)
        uniform = scores.mask / scores.mask.sum(-1, keepdim=True)
        pi = scores.pi
        if temperature != 1.0:
            pi = (scores.log_pi / temperature).masked_fill(~scores.mask, -torch.inf).softmax(-1)
        pi = torch.lerp(pi, uniform.to(scores.pi.dtype), explore)
        if generator is not None:
            pi = pi.to(generator.device)
        return torch.multinomial(pi, 1, generator=generator).squeeze(-1).cpu()

    def acting_scores(self, forest: Forest, *, with_value: bool = False) -> Scores:
        """Scores without Q and gradients, on the CPU; CUDA graphs serve forests that are there.

        with_value: say V too, of a policy whose critic is "value".
        """
        with torch.no_grad():
            if with_value:
                graphs = acting_graphs(self, self._value_graphs, with_value=True)
                self._value_graphs = graphs
            else:
                graphs = self._graphs = acting_graphs(self, self._graphs)

            def computed(graphs: ActingGraphs | None) -> Scores:
                scores = None if graphs is None else graphs.scores(forest)
                if scores is None:
                    scores = self.forward(forest.to(self.device), with_q=with_value).cpu()
                return scores

            return with_room(computed, graphs, self)

    def pack_texts(
        self,
        prompts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        *,
        leaves: bool = True,
        device: torch.device | str | None = None,
    ) -> Forest:
        """Prompts and candidates, as `score` takes them, as one forest: for `forward`, whose scores
        [B, A] have gradients, in a training loop of one's own.

        leaves, device: as for `pack`.
        Raises as `score` does.
        """
        if len(prompts) != len(candidates) or not len(prompts):
            raise CandidateError(
                f"{len(prompts)} prompts and {len(candidates)} candidate lists: give one list for "
                "each prompt, and at least one prompt"
            )
        for actions in candidates:
            if isinstance(actions, str):
                raise CandidateError(
                    f"the candidates of a prompt are {actions!r}, one text: give a list of texts"
                )
        for text in chain(prompts, *candidates):
            if not isinstance(text, str):
                raise CandidateError(
                    f"{text!r} ({type(text).__name__}) is among the prompts and candidates: give "
                    "texts"
                )
        action = self.codec.template.action
        self.codec.prepare([*prompts, *(action(a) for c in candidates for a in c)])
        ids = [self.codec.text(prompt) for prompt in prompts]
        if not all(map(len, ids)):
            raise CandidateError("a prompt has no tokens: give a text that is not blank")
        offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
        sets = [self.candidate_set(c) for c in candidates]
        return self.pack(np.concatenate(ids), offsets, sets, leaves=leaves, device=device)

    # --- saving and copying -------------------------------------------------------------------

    def save(self, folder: str | Path, *, base: Path | None = None) -> None:
        """Write weights (peft's own format for LoRA, else the whole model), heads and options.

        base: where the base model of adapters is put, if it has no name; by default in `folder`.
            Several saves may share one. They find it for as long as all move together.
        """
        contents = saved.Saved(
            model=self.model,
            tokenizer=self.tokenizer,
            heads=dict(self.heads.named_parameters()),
            options=asdict(self.options),
            template=asdict(self.codec.template),
            name=self.name,
        )
        saved.write(Path(folder), contents, lora=self.is_lora, base=base)

    def save_base(self, folder: Path) -> None:
        """Write the model without adapters, and the tokenizer, unless they are there."""
        save_base(self.model, self.tokenizer, folder)

    def __deepcopy__(self, memo: dict[int, Any]) -> Policy:
        """A policy with weights of its own, frozen ones included, and the same tokenizer: such as
        a reference that stays behind while this one is trained."""
        with torch.random.fork_rng(devices=[]):  # fresh heads, which are replaced
            copied = Policy(
                copy.deepcopy(self.model, memo),
                self.tokenizer,
                template=self.codec.template,
                options=self.options,
                name=self.name,
            )
        copied.heads = copy.deepcopy(self.heads, memo)
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, as for another process, it is what `save` writes; there it is loaded."""
        adapters = getattr(self.model, "peft_config", {}).values()
        names = [each.base_model_name_or_path for each in adapters]
        with TemporaryDirectory() as folder:
            self.save(folder)
            paths = [path for path in Path(folder).rglob("*") if path.is_file()]
            files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
        for each, name in zip(adapters, names, strict=True):  # where `save` put a base is gone
            each.base_model_name_or_path = name
        return _unpickled, (files, str(self.device), saved.is_remote_code(self.model))

    def __repr__(self) -> str:
        parameters = [*self.model.parameters(), *self.heads.parameters()]
        total = sum(p.numel() for p in parameters)
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"Policy({self.trunk.config.model_type}, {total:,} parameters, {trained:,} of them "
            f"trained, {dtype}, {self.device})"
        )


def _make_set(codec: TextCodec, actions: tuple[str, ...]) -> CandidateSet:
    if not actions:
        raise CandidateError("the candidate list is empty: a policy needs at least one action")
    if len(set(actions)) != len(actions):
        twice = sorted({a for a in actions if actions.count(a) > 1})
        raise CandidateError(
            f"duplicate candidates {twice}: each action may be listed once (duplicates would "
            "get their probability twice)"
        )
    ids = [codec.action(action) for action in actions]
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    try:
        return CandidateSet(np.concatenate(ids), offsets)
    except ValueError as error:
        unknown = codec.unknown_words(actions)
        why = f"; it does not know {', '.join(unknown)}" if unknown else ""
        raise CandidateError(
            f"the tokenizer cannot tell these candidates apart ({error}): {list(actions)}{why}"
        ) from error


def load_saved_policy(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
) -> Policy:
    """A policy written by `Policy.save`. trust_remote_code: as for `load_policy`.

    Raises:
        CheckpointError: the folder is not a saved policy, or is damaged.
    """
    folder = Path(folder)
    # Fresh heads, which are replaced, draw from the global generator.
    with ONE_AT_A_TIME, saved.complete(folder), torch.random.fork_rng(devices=[]):
        found = saved.read(folder, device, trust_remote_code=trust_remote_code)
        options = {**found.options, "q_layers": tuple(found.options["q_layers"])}
        policy = Policy(
            found.model,
            found.tokenizer,
            template=PromptTemplate(**found.template),
            options=PolicyOptions(**options),
            name=found.name,
        )
        policy.heads.load_state_dict(found.heads)
    return policy


def _unpickled(files: Mapping[str, bytes], device: str, trust_remote_code: bool) -> Policy:
    """A policy from the files that `Policy.save` writes."""
    with TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return load_saved_policy(folder, device=device, trust_remote_code=trust_remote_code)
