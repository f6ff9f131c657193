"""The stock model over one prompt and candidate at a time: what scoring in one pass agrees with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .options import PolicyOptions

Ids = npt.NDArray[np.int32]
Head = Callable[[Tensor], Tensor]


@torch.no_grad()
def stock_scores(
    model: Any, prompt: Ids, candidates: Sequence[Ids], options: PolicyOptions
) -> Tensor:
    """Scores of a prompt's candidates, float [K] on the CPU: a pass for each, by the model's own
    layers, attention and head, the head in float32: logits of 16 bits are rounded more coarsely
    than scores that differ only by rounding elsewhere.

    Args:
        model: as transformers loads it, without adapters.
        prompt: token ids, special tokens included; int32 [n].
        candidates: K lists of token ids.
        options: how token scores become a candidate's.
    """
    head = _wide_head(model)
    return torch.stack([_score(model, head, prompt, c, options) for c in candidates])


def _wide_head(model: Any) -> Head | None:
    """The model's head in float32, where it is a plain one of 16 bits."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.weight.dtype.itemsize != 2:
        return None
    bias = None if head.bias is None else head.bias.float()
    return partial(nn.functional.linear, weight=head.weight.float(), bias=bias)


def _logits(model: Any, head: Head | None, **inputs: Tensor) -> Tensor:
    """[n, V], by `head` unless the model does more with its head's output, caps or scales it."""
    calls: list[tuple[Tensor, Tensor]] = []
    if head is None:
        own = model(**inputs).logits
    else:
        note = model.get_output_embeddings().register_forward_hook(
            lambda module, given, out: calls.append((given[0], out))
        )
        try:
            own = model(**inputs).logits
        finally:
            note.remove()
    if head is not None and len(calls) == 1 and torch.equal(calls[0][1], own):
        return head(calls[0][0][0].float())
    return own[0].to(torch.promote_types(own.dtype, torch.float32))


def _score(
    model: Any, head: Head | None, prompt: Ids, candidate: Ids, options: PolicyOptions
) -> Tensor:
    p, a = (torch.from_numpy(ids.astype(np.int64)).to(model.device) for ids in (prompt, candidate))
    if model.config.is_encoder_decoder:
        start = a.new_tensor([model.config.decoder_start_token_id])
        decoded = torch.cat([start, a[:-1]])[None]
        logits = _logits(model, head, input_ids=p[None], decoder_input_ids=decoded)
    else:
        logits = _logits(model, head, input_ids=torch.cat([p, a])[None])[len(p) - 1 : -1]
    if options.score == "logprob":
        logits = logits.log_softmax(-1)
    tokens = logits.gather(-1, a[:, None])[:, 0]
    return (tokens.mean() if options.reduce == "mean" else tokens.sum()).cpu()
