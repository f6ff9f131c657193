"""Log-probabilities of chosen tokens under a language-model head, without the logits.

    z[r, t]   = h[r] . W[t]                             (bias-free head; R rows, V tokens)
    lse[r]    = log sum_t exp z[r, t]
    logp[e]   = z[row[e], token[e]] - lse[row[e]]       for each edge e

Backward, with g[e] = d loss / d logp[e], G[r] = sum of g over the edges of row r, and
p[r, t] = exp(z[r, t] - lse[r]):

    dh[r] = sum_{e of r} g[e] W[token[e]] - G[r] m[r],    m[r] = sum_t p[r, t] W[t]
    dW[t] = sum_{e of t} g[e] h[row[e]]   - sum_r G[r] p[r, t] h[r]

The gradient to h needs of the softmax only its mean embedding m, and G scales it row by row. The
torch path therefore computes m in the forward pass, where the probabilities are at hand: 4 R V D
operations for both passes instead of 6. The Triton path recomputes p tile by tile in the
backward pass, since storing it costs more than its product on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch

from . import cpu
from .backend import Backend, use_triton

# A block of logits in the torch path: 4 MiB of float32, small enough for a core's share of cache.
_BLOCK_LOGITS = 1 << 20
_BLOCK_VOCAB = 2048
# How far a row's maximum may lie from its shift before 16-bit logits are computed again.
_FAR = 4.0


def linear_logprob(
    h: torch.Tensor,
    weight: torch.Tensor,
    edge_row: torch.Tensor,
    edge_token: torch.Tensor,
    *,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Log-probability of each edge; see the module's formula. Never materialises [R, V].

    Args: h [R, D]; weight [V, D] (the head's weight, in h's dtype; or, outside Triton, bfloat16
    under float32); edge_row, edge_token int [E].
    Returns float32 [E] (float64 for float64 inputs). Differentiable in h and weight; ask for the
    weight's gradient only in full fine-tuning: it costs another product of the same size.
    On the CPU indices are checked (IndexError); ValueError for shapes and dtypes.
    """
    triton = use_triton(backend, h)
    _check(h, weight, edge_row, edge_token, widens=not triton)
    if edge_row.numel() == 0:
        return h.sum().float() * edge_row.to(_acc_dtype(h.dtype))
    if triton:
        return _TritonLinearLogprob.apply(h, weight, edge_row, edge_token)
    return _TorchLinearLogprob.apply(h, weight, edge_row, edge_token)


def edge_logits(
    h: torch.Tensor, weight: torch.Tensor, edge_row: torch.Tensor, edge_token: torch.Tensor
) -> torch.Tensor:
    """The raw logit h[row] . W[token] of each edge, float32 [E]: E dot products, no softmax."""
    _check(h, weight, edge_row, edge_token)
    dtype = _acc_dtype(h.dtype)
    rows, tokens = h[edge_row.long()].to(dtype), weight[edge_token.long()].to(dtype)
    return (rows * tokens).sum(-1)


def linear_logprob_reference(
    h: torch.Tensor, weight: torch.Tensor, edge_row: torch.Tensor, edge_token: torch.Tensor
) -> torch.Tensor:
    """The formula over dense float64 logits [R, V]: the simplest code that is right."""
    logits = h.double() @ weight.double().T
    return torch.log_softmax(logits, -1)[edge_row.long(), edge_token.long()]


def _acc_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check(
    h: torch.Tensor,
    weight: torch.Tensor,
    edge_row: torch.Tensor,
    edge_token: torch.Tensor,
    *,
    widens: bool = True,
) -> None:
    if h.ndim != 2 or weight.ndim != 2 or h.shape[1] != weight.shape[1]:
        raise ValueError(
            f"h {tuple(h.shape)}, weight {tuple(weight.shape)}: need [R, D] and [V, D]"
        )
    widens = widens and h.dtype == torch.float32 and weight.dtype == torch.bfloat16
    if h.dtype != weight.dtype and not widens:
        raise ValueError(f"h is {h.dtype}, weight {weight.dtype}: need one dtype")
    if edge_row.ndim != 1 or edge_row.shape != edge_token.shape:
        raise ValueError(
            f"edge_row {tuple(edge_row.shape)}, edge_token {tuple(edge_token.shape)}: need two "
            "vectors of one length"
        )
    if not edge_row.is_cuda and edge_row.numel():
        for name, index, size in (("row", edge_row, len(h)), ("token", edge_token, len(weight))):
            low, high = int(index.min()), int(index.max())
            if low < 0 or high >= size:
                raise IndexError(f"edge_{name} holds {low}..{high}: need 0..{size - 1}")


def _logits(
    h: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """h W^T - shift in at least float32. [r, D], [t, D], [r, 1] -> [r, t]

    16-bit products are rounded to 16 bits once, after the shift: with a shift near the row's
    maximum, the logits that carry the probability keep an absolute error of about 2^-9, where
    plain ones would lose 2^-9 of their size (0.1 at 50).
    """
    if h.dtype in (torch.float32, torch.float64):
        return torch.mm(h, weight.T, out=out).sub_(shift)
    return torch.addmm(-shift.to(h.dtype), h, weight.T).to(shift.dtype)


def _rounded(shift: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A shift that is exact in `dtype`."""
    return shift.to(dtype).to(shift.dtype)


def _blocks(rows: int, vocab: int) -> tuple[int, int]:
    """(rows, tokens) of one block of logits: weights are read once per row block."""
    tokens = min(vocab, _BLOCK_VOCAB)
    return min(rows, max(64, _BLOCK_LOGITS // tokens)), tokens


def softmax_mean(
    h: torch.Tensor, weight: torch.Tensor, *, need_mean: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(lse [R], m [R, D] or None): one pass over blocks of the vocabulary with a running maximum,
    as in attention with W for keys and values.
    """
    acc = _acc_dtype(h.dtype)
    rows, vocab = h.shape[0], weight.shape[0]
    block_rows, block_tokens = _blocks(rows, vocab)
    lse = torch.empty(rows, dtype=acc, device=h.device)
    mean = torch.empty(rows, h.shape[1], dtype=acc, device=h.device) if need_mean else None
    buffer = torch.empty(block_rows * block_tokens, dtype=acc, device=h.device)
    for r in range(0, rows, block_rows):
        part = h[r : r + block_rows]
        shift = part.new_zeros(len(part), 1, dtype=acc)  # sums below are of exp(z - shift)
        total = torch.zeros_like(shift)
        gathered = part.new_zeros(part.shape, dtype=acc) if need_mean else None
        for t in range(0, vocab, block_tokens):
            w = weight[t : t + block_tokens].to(h.dtype)
            z = _logits(part, w, shift, buffer[: len(part) * len(w)].view(len(part), len(w)))
            rise = z.amax(1, keepdim=True)
            if t:
                rise.clamp_min_(0.0)
            new_shift = _rounded(shift + rise, h.dtype)
            if h.dtype == acc:
                z -= rise
            else:  # rounded relative to a shift that proved far off: once more, those rows alone
                far = rise > _FAR if t else torch.ones_like(rise, dtype=torch.bool)
                new_shift = torch.where(far, new_shift, shift)
                again = far.squeeze(1).nonzero().squeeze(1)
                if again.numel():
                    if h.device.type == "cpu":  # the last one repeated: see cpu.ROW_STEP
                        more = -len(again) % cpu.ROW_STEP
                        again = torch.cat([again, again[-1:].expand(more)])
                    z[again] = _logits(part[again], w, new_shift[again], buffer)
            decay = (shift - new_shift).exp_() if t else None
            # Far below the maximum exp gives denormals, ten times as slow to compute.
            z.clamp_min_(-80.0).exp_()
            if decay is not None:
                total *= decay
            total += z.sum(1, keepdim=True)
            if gathered is not None:
                if decay is not None:
                    gathered *= decay
                if h.dtype == acc:
                    gathered.addmm_(z, w)
                else:
                    gathered += torch.mm(z.to(h.dtype), w)
            shift = new_shift
        lse[r : r + block_rows] = (shift + total.log()).squeeze(1)
        if mean is not None and gathered is not None:
            torch.div(gathered, total, out=mean[r : r + block_rows])
    return lse, mean


def _row_gradient(grad: torch.Tensor, edge_row: torch.Tensor, rows: int) -> torch.Tensor:
    """G[r]: the sum of the gradients of row r's edges."""
    return grad.new_zeros(rows).index_add_(0, edge_row, grad)


class _TorchLinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h: torch.Tensor,
        weight: torch.Tensor,
        edge_row: torch.Tensor,
        edge_token: torch.Tensor,
    ) -> torch.Tensor:
        ctx.dtype, ctx.rows = h.dtype, len(h)
        narrows = weight.dtype == torch.bfloat16 and (
            h.dtype == weight.dtype or cpu.multiplies_bfloat16()
        )
        if narrows and h.device.type == "cpu":
            h = cpu.narrow_rows(h)  # also for the edges: one rounding of z and of its logsumexp
        lse, mean = softmax_mean(h, weight, need_mean=ctx.needs_input_grad[0])
        logp = edge_logits(h, weight, edge_row, edge_token) - lse[edge_row.long()]
        ctx.save_for_backward(h, weight, edge_row, edge_token, lse, mean)
        return logp

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        h, weight, edge_row, edge_token, lse, mean = ctx.saved_tensors
        edge_row, edge_token = edge_row.long(), edge_token.long()
        row_grad = _row_gradient(grad, edge_row, h.shape[0])
        dh = dw = None
        if ctx.needs_input_grad[0]:
            dh = mean * -row_grad[:, None]
            dh.index_add_(0, edge_row, grad[:, None] * weight[edge_token].to(dh.dtype))
            dh = dh[: ctx.rows].to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            dw = torch.zeros(weight.shape, dtype=lse.dtype, device=h.device)
            dw.index_add_(0, edge_token, grad[:, None] * h[edge_row].to(dw.dtype))
            block_rows, block_tokens = _blocks(h.shape[0], weight.shape[0])
            buffer = torch.empty(block_rows * block_tokens, dtype=dw.dtype, device=h.device)
            for t in range(0, weight.shape[0], block_tokens):
                for r in range(0, h.shape[0], block_rows):
                    part, at = h[r : r + block_rows], slice(r, r + block_rows)
                    w = weight[t : t + block_tokens].to(h.dtype)
                    shift = _rounded(lse[at, None], h.dtype)
                    z = _logits(part, w, shift, buffer[: len(part) * len(w)].view(len(part), -1))
                    z.add_(shift - lse[at, None]).exp_().mul_(row_grad[at, None])
                    dw[t : t + block_tokens] -= torch.mm(z.T.to(h.dtype), part)
            dw = dw.to(weight.dtype)
        return dh, dw, None, None


class _TritonLinearLogprob(torch.autograd.Function):
    """Kernels K5 (logsumexp over vocabulary tiles) and K6 (probabilities, chunk by chunk)."""

    @staticmethod
    def forward(
        ctx: Any,
        h: torch.Tensor,
        weight: torch.Tensor,
        edge_row: torch.Tensor,
        edge_token: torch.Tensor,
    ) -> torch.Tensor:
        from . import linear_logprob_triton as kernels

        lse = kernels.logsumexp_forward(h, weight)
        logp = kernels.edge_forward(h, weight, edge_row, edge_token, lse)
        ctx.save_for_backward(h, weight, edge_row, edge_token, lse)
        return logp

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        from . import linear_logprob_triton as kernels

        h, weight, edge_row, edge_token, lse = ctx.saved_tensors
        dh, dw = kernels.backward(
            grad.contiguous(), h, weight, edge_row, edge_token, lse,
            need_h=ctx.needs_input_grad[0], need_weight=ctx.needs_input_grad[1],
        )  # fmt: skip
        return dh, dw, None, None
