"""The stock model over one prompt and candidate at a time: what scoring in one pass agrees with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .policy import PolicyOptions

Ids = npt.NDArray[np.int32]


@torch.no_grad()
def stock_scores(
    model: Any, prompt: Ids, candidates: Sequence[Ids], options: PolicyOptions
) -> Tensor:
    """Scores of a prompt's candidates, float [K] on the CPU: a pass for each, by the model's own
    layers, attention and head.

    Args:
        model: as transformers loads it, without adapters.
        prompt: token ids, special tokens included; int32 [n].
        candidates: K lists of token ids.
        options: how token scores become a candidate's.
    """
    return torch.stack([_score(model, prompt, candidate, options) for candidate in candidates])


def _score(model: Any, prompt: Ids, candidate: Ids, options: PolicyOptions) -> Tensor:
    p, a = (torch.from_numpy(ids.astype(np.int64)).to(model.device) for ids in (prompt, candidate))
    if model.config.is_encoder_decoder:
        start = a.new_tensor([model.config.decoder_start_token_id])
        decoded = torch.cat([start, a[:-1]])[None]
        logits = model(input_ids=p[None], decoder_input_ids=decoded).logits[0]
    else:
        logits = model(input_ids=torch.cat([p, a])[None]).logits[0, len(p) - 1 : -1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if options.score == "logprob":
        logits = logits.log_softmax(-1)
    tokens = logits.gather(-1, a[:, None])[:, 0]
    return (tokens.mean() if options.reduce == "mean" else tokens.sum()).cpu()
