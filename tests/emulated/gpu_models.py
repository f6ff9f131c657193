"""Models of every type on an emulated GPU, by the plain pass and by graphs, against the CPU."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from quick_kernels import quick_kernels
from sacglam import Policy, PolicyOptions

_path = Path(__file__).resolve().parents[1] / "models" / "conftest.py"
_spec = importlib.util.spec_from_file_location("models_conftest", _path)
assert _spec is not None
assert _spec.loader is not None
models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models)
make_model, architecture = models.make_model, models.architecture

BATCHES = [
    (["see a lion", "go to red"], [["grasp lion", "go"], ["release all", "grasp lion", "a"]]),
    (["see any blue", "to red"], [["grasp water", "go to"], ["release all", "go", "b"]]),
    (["see a lion , go to water : " * 20] * 8, [["grasp lion", "grasp lion water", "go"]] * 8),
]


def on_both(make_model: Any, architecture: str, where: str, **options: Any) -> list[Policy]:
    model, tokenizer = make_model(architecture, torch.float32)
    made = []
    for one in (model, copy.deepcopy(model).to(where)):
        torch.manual_seed(1)
        made.append(Policy(one, tokenizer, options=PolicyOptions(**options)))
    return made


def same_scores(found: Any, want: Any) -> None:
    for name in ("log_prob", "log_pi", "pi"):
        x, y = getattr(found, name).cpu(), getattr(want, name)
        torch.testing.assert_close(x[want.mask], y[want.mask], rtol=1e-4, atol=1e-5)


def same_gradients(cpu: Policy, gpu: Policy) -> None:
    for policy in (cpu, gpu):
        with torch.cuda.device(policy.device.index or 0):  # as autograd's own threads do
            scores = policy.forward(policy.pack_texts(*BATCHES[0], leaves=True))
            ((scores.log_prob + scores.q.min(0).values) * scores.mask).sum().backward()
    found = gpu.trainable_parameters()
    for name, parameter in cpu.trainable_parameters().items():
        if parameter.grad is None:
            assert found[name].grad is None, name
        else:
            torch.testing.assert_close(
                found[name].grad.cpu(), parameter.grad, rtol=1e-3, atol=1e-4, msg=name
            )


@pytest.mark.parametrize("where", ["cuda:0", "cuda:1"])
def test_scores_and_gradients(make_model: Any, architecture: str, where: str, device: Any):
    cpu, gpu = on_both(make_model, architecture, where)
    assert gpu.on_gpu_kernels
    with quick_kernels():
        for _ in range(3):  # plain, recorded, replayed
            for batch in BATCHES:
                forest = cpu.pack_texts(*batch, leaves=False)
                same_scores(gpu.acting_scores(forest), cpu.acting_scores(forest))
        assert len(gpu._graphs) >= 2
        with torch.no_grad():
            for parameter in (*cpu.model.parameters(), *gpu.model.parameters()):
                parameter.mul_(1.01)
        graphs = len(gpu._graphs)
        same_scores(gpu.acting_scores(forest), cpu.acting_scores(forest))
        assert len(gpu._graphs) == graphs  # which go on with new weights
        same_gradients(cpu, gpu)


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_with_the_kernels_themselves(make_model: Any, architecture: str, device: Any):
    cpu, gpu = on_both(make_model, architecture, "cuda")
    forest = cpu.pack_texts(["a b"], [["go", "go to"]], leaves=False)
    want = cpu.acting_scores(forest)
    device.launches = 0
    for _ in range(2):  # plain, then recorded
        same_scores(gpu.acting_scores(forest), want)
    assert device.launches > 20
    assert len(gpu._graphs) == 1


@pytest.mark.parametrize("options", [{"attn": "reference"}, {"cuda_graphs": False}])
def test_without(make_model: Any, options: dict[str, Any], device: Any):
    cpu, gpu = on_both(make_model, "llama", "cuda", **options)
    forest = cpu.pack_texts(*BATCHES[0], leaves=False)
    with quick_kernels():
        for _ in range(3):
            same_scores(gpu.acting_scores(forest), cpu.acting_scores(forest))
        assert gpu._graphs is None
        same_gradients(cpu, gpu)


@pytest.mark.parametrize("architecture", ["qwen2", "t5"])
def test_without_triton(
    make_model: Any, architecture: str, device: Any, monkeypatch: pytest.MonkeyPatch
):
    from sacglam.kernels import backend

    cpu, gpu = on_both(make_model, architecture, "cuda")
    monkeypatch.setattr(backend, "triton_available", lambda: False)
    forest = cpu.pack_texts(*BATCHES[0], leaves=False)
    device.launches = 0
    same_scores(gpu.acting_scores(forest), cpu.acting_scores(forest))
    same_gradients(cpu, gpu)
    assert not device.launches
    assert not gpu.on_gpu_kernels


def test_a_copy_has_graphs_of_its_own(make_model: Any):
    _, gpu = on_both(make_model, "llama", "cuda")
    forest = gpu.pack_texts(*BATCHES[0], leaves=False, device="cpu")
    with quick_kernels():
        for _ in range(3):
            want = gpu.acting_scores(forest)
        other = copy.deepcopy(gpu)
        assert other.device == gpu.device
        with torch.no_grad():
            for parameter in other.model.parameters():
                parameter.mul_(2.0)
        for _ in range(3):
            assert not torch.allclose(other.acting_scores(forest).log_pi, want.log_pi)
        same_scores(gpu.acting_scores(forest), want)
