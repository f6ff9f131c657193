"""That the emulated GPU refuses what a real one refuses, and shows what is stale."""

from __future__ import annotations

from typing import Any

import pytest
import torch


def test_devices_must_not_meet():
    x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3, device="cuda:1")
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(3)[torch.zeros(1, dtype=torch.int64, device="cuda")]
    torch.testing.assert_close((x + torch.tensor(2.0)).cpu(), torch.full((3,), 3.0))
    assert x.to("cuda:1").device == torch.device("cuda:1")


def test_the_host_reads_nothing_in_place():
    x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError):
        x.numpy()
    assert x.cpu().numpy().sum() == x.sum().item() == 3.0


def test_gradients_and_steps():
    torch.manual_seed(0)
    plain = torch.nn.Linear(4, 2)
    moved = torch.nn.Linear(4, 2)
    moved.load_state_dict(plain.state_dict())
    moved.to("cuda")
    x = torch.randn(5, 4)
    for model, given in ((plain, x), (moved, x.to("cuda"))):
        adam = torch.optim.AdamW(model.parameters(), fused=True)
        for _ in range(3):
            adam.zero_grad()
            model(given).square().sum().backward()
            adam.step()
    assert moved.weight.device.type == moved.weight.grad.device.type == "cuda"
    torch.testing.assert_close(moved.weight.detach().cpu(), plain.weight.detach())


def recorded(run: Any, pool: Any = None) -> Any:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = run()
    return graph, result


def test_recording_computes_nothing_and_a_replay_all():
    x, total = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")
    scale = 2.0

    def run() -> torch.Tensor:
        total.add_(x)
        return (scale * x).view(3, 1)[1:]

    graph, result = recorded(run)
    assert result.isnan().all().item()
    assert total.tolist() == [0.0] * 3
    graph.replay()
    assert result.tolist() == [[2.0]] * 2
    x.fill_(5.0)
    scale = 3.0  # what Python knew is what it was
    graph.replay()
    assert result.tolist() == [[10.0]] * 2
    assert total.tolist() == [6.0] * 3


def test_graphs_of_a_pool_overwrite_one_another():
    x = torch.ones(3, device="cuda")
    first, kept = recorded(lambda: x + 1)
    second, other = recorded(lambda: x + 2, first.pool())
    _, apart = recorded(lambda: x + 3)
    first.replay()
    assert kept.tolist() == [2.0] * 3
    second.replay()
    assert kept.isnan().all().item()
    assert other.tolist() == [3.0] * 3
    assert apart.isnan().all().item()  # never replayed


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x + torch.ones(3).to("cuda"),
        lambda x: torch.tensor([1.0], device="cuda") + x,
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x.repeat_interleave(x.long()),
        lambda x: bool((x > 0).all()),
        lambda x: x.tolist(),
    ],
)
def test_waiting_is_refused_where_it_must_be(wait: Any, device: Any):
    x = torch.ones(3, device="cuda")
    wait(x)
    with pytest.raises(RuntimeError, match="capturing"):
        recorded(lambda: wait(x))
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            wait(x)
    finally:
        torch.cuda.set_sync_debug_mode(0)
    assert not device.recording


def test_kernels_take_what_lies_on_the_current_device():
    from sacglam.kernels import rms_norm

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, weight, 1e-6)[0].cpu()

    x, weight = torch.randn(4, 8), torch.randn(8)
    want = norm(x, weight)
    torch.testing.assert_close(norm(x.to("cuda"), weight.to("cuda")), want)
    with pytest.raises(ValueError, match="cpu tensor"):
        norm(x.to("cuda"), weight)
    away = x.to("cuda:1"), weight.to("cuda:1")
    with pytest.raises(ValueError, match="current device is cuda:0"):
        norm(*away)
    with torch.cuda.device(1):
        torch.testing.assert_close(norm(*away), want)
    assert torch.cuda.current_device() == 0
