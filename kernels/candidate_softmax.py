"""The policy over each prompt's candidates, from the log-probabilities of their edges.

    s[c]      = sum (or mean) of logp[e] over the edges e on candidate c's path
    log_pi[c] = s[c] / tau - log sum_{c' of the same prompt} exp(s[c'] / tau)
    H[b]      = - sum_{c of b} pi[c] log_pi[c]

Backward, with gradients a[c] to log_pi[c], u[b] to H[b], w[c] to s[c], and b the prompt of c:

    ds[c] = (a[c] - pi[c] sum_{c' of b} a[c'] - u[b] pi[c] (log_pi[c] + H[b])) / tau + w[c]
    dlogp[e] = sum over the candidates c through e of ds[c] (divided by c's path length for mean)
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch

from .backend import Backend, use_triton

Reduction = Literal["sum", "mean"]


class CandidatePolicy(NamedTuple):
    """log_pi [C], entropy [B] in nats, scores [C] (before the temperature)."""

    log_pi: torch.Tensor
    entropy: torch.Tensor
    scores: torch.Tensor


def candidate_softmax(
    edge_logp: torch.Tensor,
    cand_edge_offsets: torch.Tensor,
    cand_edges: torch.Tensor,
    prompt_offsets: torch.Tensor,
    *,
    tau: float = 1.0,
    reduction: Reduction = "sum",
    backend: Backend = "auto",
) -> CandidatePolicy:
    """Softmax over the candidates of each prompt; see the module's formula.

    Args: edge_logp float [E]; cand_edge_offsets int [C + 1] and cand_edges int [N]: candidate c's
    path is cand_edges[offsets[c] : offsets[c + 1]], not empty; prompt_offsets int [B + 1] into the
    candidates; tau > 0, the temperature; reduction "sum" or "mean" over the path.
    Returns float32 (float64 for float64). Differentiable in edge_logp through all three results.
    On the CPU the offsets are checked. Raises ValueError.
    """
    _check(edge_logp, cand_edge_offsets, cand_edges, prompt_offsets, tau, reduction)
    mean = reduction == "mean"
    if edge_logp.dtype not in (torch.float32, torch.float64):
        edge_logp = edge_logp.float()
    triton = use_triton(backend, edge_logp) and edge_logp.dtype == torch.float32
    function = _TritonCandidateSoftmax if triton else _TorchCandidateSoftmax
    log_pi, entropy, scores = function.apply(
        edge_logp, cand_edge_offsets, cand_edges, prompt_offsets, float(tau), mean
    )
    return CandidatePolicy(log_pi, entropy, scores)


def candidate_softmax_reference(
    edge_logp: torch.Tensor,
    cand_edge_offsets: torch.Tensor,
    cand_edges: torch.Tensor,
    prompt_offsets: torch.Tensor,
    *,
    tau: float = 1.0,
    reduction: Reduction = "sum",
) -> CandidatePolicy:
    """The formula in float64 Python loops, differentiable: the simplest code that is right."""
    edge_logp = edge_logp.double()
    paths, prompts = cand_edge_offsets.tolist(), prompt_offsets.tolist()
    reduce = torch.mean if reduction == "mean" else torch.sum
    scores = [
        reduce(edge_logp[cand_edges[a:b].long()])
        for a, b in zip(paths, paths[1:], strict=False)
    ]  # fmt: skip
    log_pi, entropy = [], []
    for a, b in zip(prompts, prompts[1:], strict=False):
        if a == b:
            entropy.append(edge_logp.new_zeros(()))
            continue
        log_p = torch.log_softmax(torch.stack(scores[a:b]) / tau, 0)
        log_pi.append(log_p)
        entropy.append(-(log_p.exp() * log_p).sum())
    return CandidatePolicy(torch.cat(log_pi), torch.stack(entropy), torch.stack(scores))


def _check(
    edge_logp: torch.Tensor,
    cand_edge_offsets: torch.Tensor,
    cand_edges: torch.Tensor,
    prompt_offsets: torch.Tensor,
    tau: float,
    reduction: str,
) -> None:
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction={reduction!r}: need 'sum' or 'mean'")
    if not tau > 0:
        raise ValueError(f"tau={tau}: the temperature must be positive")
    if any(x.ndim != 1 for x in (edge_logp, cand_edge_offsets, cand_edges, prompt_offsets)):
        raise ValueError("edge_logp, cand_edge_offsets, cand_edges, prompt_offsets: need vectors")
    if cand_edge_offsets.is_cuda:
        return
    candidates = cand_edge_offsets.shape[0] - 1
    if not bool((cand_edge_offsets.diff() > 0).all()):
        raise ValueError("cand_edge_offsets must rise: every candidate needs at least one edge")
    if not bool((prompt_offsets.diff() >= 0).all()) or int(prompt_offsets[-1]) != candidates:
        raise ValueError(f"prompt_offsets must rise to {candidates}, the number of candidates")
    if int(cand_edge_offsets[-1]) != cand_edges.shape[0]:
        raise ValueError(
            f"cand_edge_offsets ends at {int(cand_edge_offsets[-1])}, cand_edges holds "
            f"{cand_edges.shape[0]}"
        )


def _owner(offsets: torch.Tensor, total: int) -> torch.Tensor:
    """int64 [total]: the segment of each element of a CSR layout."""
    counts = offsets.diff().long()
    index = torch.arange(counts.shape[0], device=offsets.device)
    return torch.repeat_interleave(index, counts, output_size=total)


class _TorchCandidateSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        edge_logp: torch.Tensor,
        cand_edge_offsets: torch.Tensor,
        cand_edges: torch.Tensor,
        prompt_offsets: torch.Tensor,
        tau: float,
        mean: bool,
    ) -> Any:
        candidates, prompts = cand_edge_offsets.shape[0] - 1, prompt_offsets.shape[0] - 1
        edges = cand_edges.long()
        of_edge = _owner(cand_edge_offsets, edges.shape[0])
        of_cand = _owner(prompt_offsets, candidates)
        scores = edge_logp.new_zeros(candidates).index_add_(0, of_edge, edge_logp[edges])
        lengths = cand_edge_offsets.diff().to(edge_logp.dtype)
        if mean:
            scores = scores / lengths
        z = scores / tau
        top = z.new_full((prompts,), float("-inf")).scatter_reduce_(0, of_cand, z, "amax")
        shifted = z - top[of_cand]
        total = z.new_zeros(prompts).index_add_(0, of_cand, shifted.exp())
        log_pi = shifted - total.log()[of_cand]
        entropy = z.new_zeros(prompts).index_add_(0, of_cand, -log_pi.exp() * log_pi)
        ctx.save_for_backward(edges, of_edge, of_cand, lengths, log_pi, entropy)
        ctx.tau, ctx.mean, ctx.edges = tau, mean, edge_logp.shape[0]
        return log_pi, entropy, scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        edges, of_edge, of_cand, lengths, log_pi, entropy = ctx.saved_tensors
        d_log_pi, d_entropy, d_scores = grads
        pi = log_pi.exp()
        total = d_entropy.new_zeros(entropy.shape).index_add_(0, of_cand, d_log_pi)
        dz = d_log_pi - pi * total[of_cand]
        dz = dz - d_entropy[of_cand] * pi * (log_pi + entropy[of_cand])
        ds = dz / ctx.tau + d_scores
        if ctx.mean:
            ds = ds / lengths
        out = ds.new_zeros(ctx.edges).index_add_(0, edges, ds[of_edge])
        return out, None, None, None, None, None


class _TritonCandidateSoftmax(torch.autograd.Function):
    """Kernel K7: one program a prompt."""

    @staticmethod
    def forward(
        ctx: Any,
        edge_logp: torch.Tensor,
        cand_edge_offsets: torch.Tensor,
        cand_edges: torch.Tensor,
        prompt_offsets: torch.Tensor,
        tau: float,
        mean: bool,
    ) -> Any:
        from . import candidate_softmax_triton as kernels

        log_pi, entropy, scores = kernels.forward(
            edge_logp, cand_edge_offsets, cand_edges, prompt_offsets, tau, mean
        )
        ctx.save_for_backward(cand_edge_offsets, cand_edges, prompt_offsets, log_pi, entropy)
        ctx.tau, ctx.mean, ctx.edges = tau, mean, edge_logp.shape[0]
        return log_pi, entropy, scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        from . import candidate_softmax_triton as kernels

        offsets, cand_edges, prompt_offsets, log_pi, entropy = ctx.saved_tensors
        out = kernels.backward(
            grads[0], grads[1], grads[2], offsets, cand_edges, prompt_offsets, log_pi, entropy,
            ctx.edges, ctx.tau, ctx.mean,
        )  # fmt: skip
        return out, None, None, None, None, None
