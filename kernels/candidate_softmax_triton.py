"""Triton kernels of `candidate_softmax` (formula and reference there): K7 and launchers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 64  # candidates at a time; more are looped over


@triton.jit
def forward_kernel(
    logp_ptr,  # [E] float32
    path_ptr,  # [C + 1]: candidate -> first entry of its path
    edges_ptr,  # [N]: edges of the paths
    prompt_ptr,  # [B + 1]: prompt -> first candidate
    log_pi_ptr,  # [C] float32
    entropy_ptr,  # [B] float32
    scores_ptr,  # [C] float32
    inv_tau,
    MEAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a prompt: scores and an online softmax, then a second pass for log_pi."""
    prompt = tl.program_id(0)
    begin = tl.load(prompt_ptr + prompt).to(tl.int32)
    stop = tl.load(prompt_ptr + prompt + 1).to(tl.int32)
    top = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    weighted = tl.zeros([1], tl.float32)  # sum of exp(z - top) (z - top)
    for c in range(begin, stop, BLOCK):
        cand = c + tl.arange(0, BLOCK)
        ok = cand < stop
        first = tl.load(path_ptr + cand, mask=ok, other=0).to(tl.int32)
        length = tl.load(path_ptr + cand + 1, mask=ok, other=0).to(tl.int32) - first
        score = tl.zeros([BLOCK], tl.float32)
        for step in range(0, tl.max(length, 0)):
            on_path = step < length
            edge = tl.load(edges_ptr + first + step, mask=on_path, other=0)
            score += tl.load(logp_ptr + edge, mask=on_path, other=0.0)
        if MEAN:
            score = score / tl.maximum(length, 1).to(tl.float32)
        tl.store(scores_ptr + cand, score, mask=ok)
        z = tl.where(ok, score * inv_tau, float("-inf"))
        new_top = tl.maximum(top, tl.max(z, 0))
        p = tl.exp(z - new_top)
        # The first block has top = -inf: its (empty) sums must not meet -inf * 0.
        drop = tl.where(top == float("-inf"), 0.0, top - new_top)
        decay = tl.exp(drop)
        weighted = decay * (weighted + drop * total) + tl.sum(
            tl.where(ok, p * (z - new_top), 0.0), 0
        )
        total = total * decay + tl.sum(p, 0)
        top = new_top
    total = tl.where(total == 0.0, 1.0, total)  # a prompt without candidates has entropy 0
    tl.store(entropy_ptr + prompt + tl.arange(0, 1), tl.log(total) - weighted / total)
    tl.debug_barrier()  # scores were written by other threads of this program
    for c in range(begin, stop, BLOCK):
        cand = c + tl.arange(0, BLOCK)
        ok = cand < stop
        z = tl.load(scores_ptr + cand, mask=ok, other=0.0) * inv_tau
        tl.store(log_pi_ptr + cand, z - top - tl.log(total), mask=ok)


@triton.jit
def backward_kernel(
    d_log_pi_ptr,  # [C] float32
    d_entropy_ptr,  # [B] float32
    d_scores_ptr,  # [C] float32
    path_ptr,  # [C + 1]
    edges_ptr,  # [N]
    prompt_ptr,  # [B + 1]
    log_pi_ptr,  # [C] float32
    entropy_ptr,  # [B] float32
    d_logp_ptr,  # [E] float32, zeroed; edges shared by candidates are added up atomically
    inv_tau,
    MEAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a prompt."""
    prompt = tl.program_id(0)
    begin = tl.load(prompt_ptr + prompt).to(tl.int32)
    stop = tl.load(prompt_ptr + prompt + 1).to(tl.int32)
    entropy = tl.load(entropy_ptr + prompt)
    d_entropy = tl.load(d_entropy_ptr + prompt)
    total = tl.zeros([1], tl.float32)
    for c in range(begin, stop, BLOCK):
        cand = c + tl.arange(0, BLOCK)
        total += tl.sum(tl.load(d_log_pi_ptr + cand, mask=cand < stop, other=0.0), 0)
    for c in range(begin, stop, BLOCK):
        cand = c + tl.arange(0, BLOCK)
        ok = cand < stop
        log_pi = tl.load(log_pi_ptr + cand, mask=ok, other=0.0)
        pi = tl.exp(log_pi)
        dz = tl.load(d_log_pi_ptr + cand, mask=ok, other=0.0) - pi * total
        dz -= d_entropy * pi * (log_pi + entropy)
        ds = dz * inv_tau + tl.load(d_scores_ptr + cand, mask=ok, other=0.0)
        first = tl.load(path_ptr + cand, mask=ok, other=0).to(tl.int32)
        length = tl.load(path_ptr + cand + 1, mask=ok, other=0).to(tl.int32) - first
        if MEAN:
            ds = ds / tl.maximum(length, 1).to(tl.float32)
        for step in range(0, tl.max(length, 0)):
            on_path = step < length
            edge = tl.load(edges_ptr + first + step, mask=on_path, other=0)
            tl.atomic_add(d_logp_ptr + edge, ds, mask=on_path, sem="relaxed")


def forward(
    edge_logp: torch.Tensor,
    cand_edge_offsets: torch.Tensor,
    cand_edges: torch.Tensor,
    prompt_offsets: torch.Tensor,
    tau: float,
    mean: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(log_pi [C], entropy [B], scores [C]), float32."""
    prompts = prompt_offsets.shape[0] - 1
    log_pi = edge_logp.new_empty(cand_edge_offsets.shape[0] - 1)
    scores, entropy = torch.empty_like(log_pi), edge_logp.new_empty(prompts)
    forward_kernel[(prompts,)](
        edge_logp.contiguous(), cand_edge_offsets, cand_edges, prompt_offsets, log_pi, entropy,
        scores, 1.0 / tau, MEAN=mean, BLOCK=_BLOCK, num_warps=2,
    )  # fmt: skip
    return log_pi, entropy, scores


def backward(
    d_log_pi: torch.Tensor,
    d_entropy: torch.Tensor,
    d_scores: torch.Tensor,
    cand_edge_offsets: torch.Tensor,
    cand_edges: torch.Tensor,
    prompt_offsets: torch.Tensor,
    log_pi: torch.Tensor,
    entropy: torch.Tensor,
    edges: int,
    tau: float,
    mean: bool,
) -> torch.Tensor:
    """dlogp [E], float32."""
    d_logp = log_pi.new_zeros(edges)
    backward_kernel[(prompt_offsets.shape[0] - 1,)](
        d_log_pi.contiguous(), d_entropy.contiguous(), d_scores.contiguous(), cand_edge_offsets,
        cand_edges, prompt_offsets, log_pi, entropy, d_logp, 1.0 / tau,
        MEAN=mean, BLOCK=_BLOCK, num_warps=2,
    )  # fmt: skip
    return d_logp
