"""Acting by graphs: what is recorded when, and that a graph is used only where it is right.

What CUDA itself does is tested on a GPU alone.
"""

from __future__ import annotations

import gc
import sys
import warnings
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sacglam.config import TrainConfig
from sacglam.kernels import backend
from sacglam.models import graphs as graphs_module
from sacglam.models import policy as policy_module
from sacglam.models.graphs import ActingGraphs, CudaCapture, Graphs, acting_graphs, graphs_serve
from sacglam.models.policy import Policy
from sacglam.models.target import TargetParameters
from sacglam.training.setup import wrap_model

sys.path.append(str(Path(__file__).resolve().parents[1]))

from recording import LateStream, Recording  # noqa: E402

ACTIONS = [["go", "go to", "red lion", "grasp"], ["blue", "green", "go to red"]]
# Lengths of prompts whose forests are padded to sizes of their own.
LENGTHS = (5, 70, 200)


@pytest.fixture(params=["llama", "t5"])
def policy(request: pytest.FixtureRequest, make_policy: Any) -> Policy:
    return make_policy(request.param)


@pytest.fixture
def llama(make_policy: Any) -> Policy:
    return make_policy("llama")


def graphs_of(policy: Policy, limit: int = 16) -> tuple[ActingGraphs, Recording]:
    recording = Recording(policy.model)
    forward = partial(policy.forward, with_q=False)
    return ActingGraphs(forward, policy.model, recording, limit=limit), recording


def batch(policy: Policy, words: str, length: int = 5, rows: int = 2) -> Any:
    prompts = [f"{words} " * length, "b c " + "d " * (length - 2)] * rows
    return policy.pack_texts(prompts[:rows], (ACTIONS * rows)[:rows], leaves=False)


def scores(graphs: ActingGraphs, forest: Any) -> Any:
    with torch.no_grad():
        return graphs.scores(forest)


def assert_plain(policy: Policy, got: Any, forest: Any) -> None:
    with torch.no_grad():
        want = policy.forward(forest, with_q=False)
    for name in ("log_prob", "log_pi", "pi"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=1e-12, atol=1e-12)
    assert bool((got.mask == want.mask).all())


def test_the_second_time_a_size_is_recorded_and_serves_other_batches(policy: Policy):
    graphs, recording = graphs_of(policy)
    assert scores(graphs, batch(policy, "a")) is None
    for words, rows in (("a", 2), ("go", 2), ("red", 3), ("lion", 1)):
        forest = batch(policy, words, rows=rows)
        assert_plain(policy, scores(graphs, forest), forest)
    assert recording.made == len(graphs) == 1


def test_results_are_not_overwritten(llama: Policy):
    graphs, _ = graphs_of(llama)
    first, second = batch(llama, "a"), batch(llama, "go")
    scores(graphs, first)
    got = scores(graphs, first)
    scores(graphs, second)
    assert_plain(llama, got, first)


def test_inputs_that_are_still_to_be_copied_are_not_overwritten(
    llama: Policy, monkeypatch: pytest.MonkeyPatch
):
    stream = LateStream(monkeypatch, llama.model)

    def call(forest: Any, numbers: torch.Tensor) -> torch.Tensor:
        return numbers * llama.forward(forest, with_q=False).log_prob.sum(1)[:2]

    graphs = Graphs(call, llama.model, stream.capture, doing="testing", numbers=1)
    found: list[torch.Tensor] = []
    plain: list[torch.Tensor] = []
    with torch.no_grad():
        for k, words in enumerate(("a", "a", "go", "red", "lion")):
            forest, number = batch(llama, words), np.array([float(k)])
            plain.append(call(forest, torch.from_numpy(number)))
            result = graphs.run(forest, number)
            if result is not None:
                stream.tell(lambda result=result: found.append(result.clone()))
        stream.wait()
    assert len(graphs) == 1
    torch.testing.assert_close(found, plain[1:])


def test_a_graph_serves_what_is_somewhat_smaller(llama: Policy):
    graphs, recording = graphs_of(llama)
    large = batch(llama, "a", 200, rows=6)
    for _ in range(2):
        scores(graphs, large)
    for length, served in ((190, True), (170, True), (120, False), (30, False)):
        forest = batch(llama, "go", length, rows=6)
        found = scores(graphs, forest)
        assert (found is not None) is served, length
        if found is not None:
            assert_plain(llama, found, forest)
    assert recording.made == 1


def test_weights_changed_in_place_are_read(policy: Policy):
    graphs, recording = graphs_of(policy)
    forest = batch(policy, "a")
    before = [scores(graphs, forest) for _ in range(2)][1]
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    after = scores(graphs, forest)
    assert_plain(policy, after, forest)
    assert float((after.log_pi - before.log_pi).abs().max()) > 1e-3
    assert recording.made == 1


def test_weights_moved_elsewhere_end_a_graph(llama: Policy):
    graphs, recording = graphs_of(llama)
    target = TargetParameters(llama.trainable_parameters())
    with torch.no_grad():
        for parameter in llama.model.parameters():
            parameter.mul_(1.1)
    forest = batch(llama, "a")
    for _ in range(2):
        scores(graphs, forest)
    with target.applied():
        assert scores(graphs, forest) is None
        assert len(graphs) == 0
    # Sizes that were recorded before are seen twice as often before they are recorded again.
    found = [scores(graphs, forest) for _ in range(5)]
    assert [f is None for f in found] == [True, True, False, False, False]
    assert_plain(llama, found[-1], forest)
    assert recording.made == 2
    with target.applied():
        assert scores(graphs, forest) is None


def test_weights_that_are_other_tensors_end_a_graph(make_policy: Any):
    """The old ones stay alive and where they were: addresses alone do not tell."""
    policy = make_policy("llama")
    other = {name: 1.1 * weight for name, weight in policy.model.state_dict().items()}
    graphs, recording = graphs_of(policy)
    forest = batch(policy, "a")
    before = [scores(graphs, forest) for _ in range(2)][1]
    policy.model.load_state_dict(other, assign=True)
    found = [scores(graphs, forest) for _ in range(4)]
    assert found[0] is None
    assert_plain(policy, found[-1], forest)
    assert float((found[-1].log_pi - before.log_pi).abs().max()) > 1e-3
    assert recording.made == 2


def test_an_adapter_in_the_place_of_another_ends_a_graph(make_model: Any):
    from peft import LoraConfig, get_peft_model

    model, tokenizer = make_model("llama")
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    policy = Policy(get_peft_model(model, lora), tokenizer)
    graphs, _ = graphs_of(policy)
    forest = batch(policy, "a")
    for _ in range(2):
        found = scores(graphs, forest)
    assert_plain(policy, found, forest)
    policy.model.delete_adapter("default")
    policy.model.add_adapter("default", lora)
    policy.model.set_adapter("default")
    policy.model.double().eval()
    assert scores(graphs, forest) is None
    found = [scores(graphs, forest) for _ in range(3)][-1]
    assert_plain(policy, found, forest)


def test_a_policy_with_graphs_is_freed_when_it_goes(
    make_policy: Any, monkeypatch: pytest.MonkeyPatch
):
    policy = make_policy("llama")
    monkeypatch.setattr(graphs_module, "graphs_serve", lambda policy: True)
    monkeypatch.setattr(graphs_module, "CudaCapture", lambda device: Recording(policy_model()))
    policy_model = weakref.ref(policy.model)
    for _ in range(3):
        policy.act(["a b"], ACTIONS[:1])
    assert len(policy._graphs) == 1
    gone = weakref.ref(policy)
    gc.collect()
    gc.disable()
    try:
        del policy
        assert gone() is None
    finally:
        gc.enable()


def test_swapping_the_target_in_and_out_between_calls_ends_no_graph(llama: Policy):
    graphs, recording = graphs_of(llama)
    target = TargetParameters(llama.trainable_parameters())
    forest = batch(llama, "a")
    for _ in range(4):
        scores(graphs, forest)
        with target.applied(), torch.no_grad():
            llama.forward(forest, with_q=False)
    assert recording.made == len(graphs) == 1
    assert_plain(llama, scores(graphs, forest), forest)


def test_the_graph_unused_for_longest_is_dropped(llama: Policy):
    graphs, recording = graphs_of(llama, limit=2)
    short, middle, long = (batch(llama, "a", length) for length in LENGTHS)
    for forest in (short, short, middle, middle, short, long, long):
        scores(graphs, forest)
    assert recording.made == 3
    assert len(graphs) == 2
    for forest in (short, long):
        assert_plain(llama, scores(graphs, forest), forest)
    assert scores(graphs, middle) is None
    assert recording.made == 3


def test_sizes_that_push_each_other_out_are_recorded_ever_more_rarely(llama: Policy):
    graphs, recording = graphs_of(llama, limit=1)
    short, long = batch(llama, "a"), batch(llama, "a", 70)
    for _ in range(16):
        for forest in (short, long):
            found = scores(graphs, forest)
            if found is not None:
                assert_plain(llama, found, forest)
    assert recording.made <= 6  # after 2, 4 and 8 sightings each


def test_a_recording_that_fails_is_told_once(llama: Policy):
    def fail(_: Any) -> Any:
        raise RuntimeError("called a synchronizing operation\nand more")

    graphs = ActingGraphs(partial(llama.forward, with_q=False), llama.model, fail)
    forest = batch(llama, "a")
    assert scores(graphs, forest) is None
    with pytest.warns(RuntimeWarning, match="RuntimeError: called a synchronizing operation"):
        assert scores(graphs, forest) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [scores(graphs, forest) for _ in range(4)] == [None] * 4


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB."),
        RuntimeError("CUDA error: out of memory\nA hint."),
    ],
)
def test_a_recording_without_room_leaves_room_for_the_plain_pass(
    llama: Policy, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    recording = Recording(llama.model, 2, error)
    graphs = ActingGraphs(partial(llama.forward, with_q=False), llama.model, recording)
    monkeypatch.setattr(policy_module, "acting_graphs", lambda *_: graphs)
    for length in LENGTHS[:2]:
        forest = batch(llama, "a", length)
        assert len(graphs) == recording.made == (0 if length == LENGTHS[0] else 1)
        llama.acting_scores(forest)
        if recording.made:
            with pytest.warns(RuntimeWarning, match="beside its CUDA graphs, which were dropped"):
                got = llama.acting_scores(forest)
        else:
            got = llama.acting_scores(forest)
        assert_plain(llama, got, forest)
    assert recording.forgot
    assert len(graphs) == 0
    for _ in range(4):
        assert_plain(llama, llama.acting_scores(forest), forest)
    assert recording.made == 3


def test_no_graph_where_the_pass_is_another(make_model: Any):
    from peft import LoraConfig, get_peft_model

    model, tokenizer = make_model("llama")
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    policy = Policy(get_peft_model(model, lora), tokenizer)
    policy.model.add_adapter("other", lora)
    policy.model.double().eval()
    graphs, recording = graphs_of(policy)
    forest = batch(policy, "a")
    for _ in range(2):
        found = scores(graphs, forest)
    assert_plain(policy, found, forest)
    with policy.model.disable_adapter():
        assert scores(graphs, forest) is None
    policy.model.train()
    assert scores(graphs, forest) is None
    policy.model.eval()
    with torch.autocast("cpu"):
        assert scores(graphs, forest) is None
    with torch.inference_mode():
        assert scores(graphs, forest) is None
    assert_plain(policy, scores(graphs, forest), forest)
    assert recording.made == 1
    policy.model.set_adapter("other")
    for _ in range(5):
        found = scores(graphs, forest)
    assert_plain(policy, found, forest)
    assert recording.made == 2


def test_actions_chosen_by_graphs_are_the_plain_ones(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
):
    prompts = ["a b c", "go to red"] * 8
    draw = {"candidates": ACTIONS * 8, "prompts": prompts}
    plain = [policy.act(**draw, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    graphs, recording = graphs_of(policy)
    monkeypatch.setattr(policy_module, "acting_graphs", lambda *_: graphs)
    for k, want in enumerate(plain):
        assert policy.act(**draw, generator=torch.Generator().manual_seed(k)) == want
    assert recording.made == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_graphs_serve_where_triton_does(
    llama: Policy, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backend, "triton_available", lambda: True)
    monkeypatch.setattr(backend, "_capability", lambda device: (8, 6))
    monkeypatch.setattr(Policy, "device", torch.device("cuda"))
    llama.model.to(dtype)
    assert graphs_serve(llama) is (dtype != torch.float64)
    monkeypatch.setattr(backend, "_capability", lambda device: (7, 5))
    assert not graphs_serve(llama)


def test_the_cpu_knows_no_graphs(llama: Policy):
    assert acting_graphs(llama, None) is None
    llama.act(["a b c"], [["go", "grasp"]])
    assert llama._graphs is None


@pytest.mark.parametrize("wanted", [True, False])
def test_the_setting_reaches_the_policy(make_model: Any, wanted: bool):
    config = TrainConfig().with_overrides({"model.cuda_graphs": wanted})
    assert wrap_model(config, *make_model("llama")).options.cuda_graphs is wanted


def test_a_forest_moves_whole(policy: Policy):
    forest = batch(policy, "a", 9)
    assert forest.to(torch.device("cpu")) is forest
    moved = forest.to(torch.device("meta"))
    for plan in (moved.plan, moved.encoder_plan, moved.cross_plan):
        if plan is not None:
            assert {x.device.type for x in vars(plan).values() if torch.is_tensor(x)} == {"meta"}
            assert plan._cache == {}
    assert {x.device.type for x in vars(moved).values() if torch.is_tensor(x)} == {"meta"}
    assert moved.longest == forest.longest


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "t5", "flan-t5"])
def test_graphs_on_a_gpu(make_policy: Any, architecture: str):
    policy: Policy = make_policy(architecture, torch.float32)
    policy.model.to("cuda")
    graphs = ActingGraphs(
        partial(policy.forward, with_q=False), policy.model, CudaCapture(policy.device), limit=2
    )
    for step in range(3):
        for length in LENGTHS * 3:
            forest = batch(policy, "a b"[: 1 + 2 * (step % 2)], length)
            found = scores(graphs, forest)
            with torch.no_grad():
                want = policy.forward(forest, with_q=False).cpu()
            if found is not None:
                torch.testing.assert_close(found.log_prob, want.log_prob, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(found.pi, want.pi, rtol=1e-3, atol=1e-4)
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
    assert len(graphs) == 2
    for _ in range(3):
        chosen = policy.act(["a b c"] * 3, [["go", "grasp"]] * 3, generator=torch.Generator())
        assert set(chosen) <= {"go", "grasp"}
    assert policy._graphs is not None
    assert len(policy._graphs) == 1
