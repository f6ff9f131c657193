"""Weights of 16 bits that are trained: what a step changes is less than they can show."""

from __future__ import annotations

import torch
from sacglam import TrainConfig
from sacglam.models.target import TargetParameters
from sacglam.training.optimiser import Optimiser
from torch import nn


def _parameters(dtype: torch.dtype) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"body": (5, 7), "unused": (3,), "heads.0": (4,)}
    values = {n: torch.randn(s, generator=generator).bfloat16() for n, s in shapes.items()}
    # Heads are float32 whatever the model is in.
    return {
        name: nn.Parameter(x.to(torch.float32 if name == "heads.0" else dtype))
        for name, x in values.items()
    }


def _config(**options: object) -> TrainConfig:
    return TrainConfig().with_overrides({"optim.lr": 1e-5, "optim.grad_clip": 1e6, **options})


def _train(optimiser: Optimiser, parameters: dict[str, nn.Parameter], steps: range) -> None:
    for i in steps:
        generator = torch.Generator().manual_seed(i)
        loss = torch.zeros(())
        for name in ("body", "heads.0"):
            noise = torch.randn(parameters[name].shape, generator=generator) + 0.5
            loss = loss + (parameters[name].float() * noise.bfloat16().float()).sum()
        optimiser.gradient(loss)
        optimiser.step(i, i / 200)


def test_small_steps_add_up():
    """As AdamW's over float32 weights, of which these are the rounded values."""
    narrow, wide = _parameters(torch.bfloat16), _parameters(torch.float32)
    start = narrow["body"].detach().clone()
    for parameters in (narrow, wide):
        _train(Optimiser(parameters, _config()), parameters, range(200))
    assert narrow["body"].dtype is torch.bfloat16
    assert not torch.equal(narrow["body"], start)
    for name, expected in wide.items():
        torch.testing.assert_close(
            narrow[name].float(), expected.to(narrow[name].dtype).float(), rtol=0, atol=1e-6
        )


def test_an_optimiser_goes_on_from_its_state():
    whole, parts = _parameters(torch.bfloat16), _parameters(torch.bfloat16)
    _train(Optimiser(whole, _config()), whole, range(60))
    first = Optimiser(parts, _config())
    _train(first, parts, range(25))
    state = {name: x.clone() for name, x in first.state_dict().items()}
    second = Optimiser(parts, _config())
    second.load_state_dict(state)
    _train(second, parts, range(25, 60))
    for name, expected in whole.items():
        assert torch.equal(parts[name], expected), name


def test_copies_that_a_checkpoint_lacks_are_the_weights():
    parameters = _parameters(torch.bfloat16)
    first = Optimiser(parameters, _config())
    _train(first, parameters, range(5))
    state = {n: x.clone() for n, x in first.state_dict().items() if not n.startswith("copy.")}
    second = Optimiser(parameters, _config())
    second.load_state_dict(state)
    assert torch.equal(second.state_dict()["copy.0"], parameters["body"].float())


def test_the_target_follows():
    """A step of the average by 0.005 changes no weight of eight bits; 400 do."""
    parameters = _parameters(torch.bfloat16)
    target = TargetParameters(parameters)
    exact = {name: p.detach().double() for name, p in parameters.items()}
    with torch.no_grad():
        for p in parameters.values():
            p.add_(0.5)
    for _ in range(400):
        target.update(0.005)
        for name, p in parameters.items():
            exact[name] += 0.005 * (p.double() - exact[name])
    for name, value in target.state_dict().items():
        assert value.dtype is torch.float32
        torch.testing.assert_close(value.double(), exact[name], rtol=1e-4, atol=1e-5)
    online = {name: p.detach().clone() for name, p in parameters.items()}
    with target.applied():
        for name, p in parameters.items():
            assert p.dtype is online[name].dtype
            torch.testing.assert_close(p.double(), exact[name], rtol=2**-8, atol=1e-4)
    for name, p in parameters.items():
        assert torch.equal(p, online[name])
    again = TargetParameters(parameters)
    again.load_state_dict(target.state_dict())
    again.update(0.1)
    target.update(0.1)
    for a, b in zip(again.averages(), target.averages(), strict=True):
        assert torch.equal(a, b)
