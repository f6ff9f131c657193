"""The way to flash-attn, to a stand-in of its signature: what is handed over, and what is not."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from sacglam.kernels import attention, attention_reference, plan_forest, plan_segments
from sacglam.kernels import forest_attention_flash as flash
from sacglam.models.padding import pad_forest, padded_sizes
from sacglam.models.policy import Policy

Q, K = [3, 1, 7, 2], [5, 9, 0, 4]


def _starts(sizes: list[int]) -> torch.Tensor:
    return torch.tensor([0, *sizes]).cumsum(0).int()


def _plan(**options: Any) -> Any:
    return plan_segments(_starts(Q), sum(Q), _starts(K), sum(K), **options)


def _tensors(dtype: torch.dtype = torch.bfloat16, dim: int = 16) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = ((sum(Q), 4, dim), (sum(K), 2, dim), (sum(K), 2, dim))
    return [torch.randn(s).to(dtype).transpose(0, 1).requires_grad_() for s in shapes]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Puts flash_attn_varlen_func in place, in plain torch; the bounds of each call."""
    calls: list[tuple[int, int]] = []

    def varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *, softmax_scale):
        calls.append((max_seqlen_q, max_seqlen_k))
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert q.dtype in (torch.bfloat16, torch.float16)
        out = []
        for a, b, c, d in zip(
            cu_seqlens_q, cu_seqlens_q[1:], cu_seqlens_k, cu_seqlens_k[1:], strict=False
        ):
            assert b - a <= max_seqlen_q
            assert d - c <= max_seqlen_k
            keys, values = (
                x[c:d].double().repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v)
            )
            scores = torch.einsum("qhd,khd->hqk", q[a:b].double(), keys) * softmax_scale
            found = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
            out.append(found if d > c else torch.zeros_like(found))
        return torch.cat(out).to(q.dtype)

    module = types.SimpleNamespace(flash_attn_varlen_func=varlen)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(flash, "flash_available", lambda: True)
    return calls


def test_segments_and_their_gradients(called: Any, relative_error: Any):
    leaves = _tensors()
    plan = _plan(longest=(8, 9))
    out = attention(*leaves, plan, scale=0.5, backend="flash")
    want = attention_reference(*leaves, plan, scale=0.5)
    assert called == [(8, 9)]
    assert out.shape == want.shape
    assert relative_error(out, want) < 1e-2
    got = torch.autograd.grad(out.double().square().sum(), leaves)
    for one, two in zip(got, torch.autograd.grad(want.square().sum(), leaves), strict=True):
        assert relative_error(one, two) < 2e-2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"longest": None}, "the longest segments"),
        ({"bias": True}, "no bias"),
        ({"dtype": torch.float32}, "16-bit tensors, got torch.float32"),
        ({"dim": 20}, "a multiple of 8; got 20"),
        ({"forest": True}, "interval test"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(called: Any, change: dict[str, Any], reason: str):
    leaves = _tensors(change.get("dtype", torch.bfloat16), change.get("dim", 16))
    positions = {"q_pos": torch.arange(sum(Q)).int(), "k_pos": torch.arange(sum(K)).int()}
    plan = _plan(longest=change.get("longest", (7, 9)), **positions)
    if "forest" in change:
        leaves = [leaves[0], *(leaves[0][:2] for _ in range(2))]
        total = sum(Q)
        plan = plan_forest(torch.full((total,), total).int(), torch.tensor([0, total]).int())
    bias = torch.randn(4, 5).bfloat16() if "bias" in change else None
    with pytest.raises(ValueError, match=f"backend='flash'.*{reason}"):
        attention(*leaves, plan, bias=bias, backend="flash")
    assert not called


def test_a_gpu_that_it_does_not_know_is_left_to_torch(called: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(flash, "before_ampere", lambda device: True)
    leaves, plan = _tensors(), _plan(longest=(7, 9))
    assert "compute capability 8.0" in str(flash.refusal(leaves[0], plan, None))
    with pytest.raises(ValueError, match="backend='flash': it needs a GPU of compute capability 8"):
        attention(*leaves, plan, backend="flash")
    assert not called


def test_left_alone_on_the_cpu(called: Any):
    attention(*_tensors(), _plan(longest=(7, 9)))
    assert not called


@pytest.mark.parametrize(
    ("content", "available"),
    [
        (None, False),
        ("def flash_attn_varlen_func(): ...", True),
        ("raise ImportError('undefined symbol')", False),
        ("", False),
    ],
)
def test_a_package_that_does_not_load_or_is_another_is_left_alone(
    content: str | None, available: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """None: a folder without a file of its own, as of flash-attn-4."""
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    if content is not None:
        (tmp_path / "flash_attn" / "__init__.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    flash.flash_available.cache_clear()
    assert flash.flash_available() == available
    flash.flash_available.cache_clear()
    sys.modules.pop("flash_attn", None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_where_it_is_installed(relative_error: Any):
    pytest.importorskip("flash_attn")
    leaves = [x.detach().cuda().requires_grad_() for x in _tensors()]
    plan = plan_segments(
        _starts(Q).cuda(), sum(Q), _starts(K).cuda(), sum(K), longest=(max(Q), max(K))
    )
    out = attention(*leaves, plan, backend="flash")
    assert relative_error(out, attention_reference(*leaves, plan)) < 1e-2


def test_forests_know_their_longest_segments():
    from sacglam.models.tiny import build_tokenizer
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = build_tokenizer(["a b c d"])
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    policy = Policy(T5ForConditionalGeneration(config), tokenizer)
    prompts = ["a b " * 3, "c " * 400, "d"]
    forest = policy.pack_texts(prompts, [["a", "b c d"]] * 3, leaves=True)
    assert forest.cross_plan is not None
    assert forest.cross_plan.longest == (5, 400)  # the start token and the trie
    sizes = padded_sizes(forest)
    assert sizes.longest == (256, 512)
    padded = pad_forest(forest)
    assert padded.cross_plan is not None
    for start, bound in zip(
        (padded.cross_plan.q_start, padded.cross_plan.k_start), sizes.longest, strict=True
    ):
        assert int(start.diff().max()) <= bound
