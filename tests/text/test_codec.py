"""Tokenising texts one by one, many at once, and again after they were forgotten."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sacglam.errors import EnvironmentProtocolError
from sacglam.models.tiny import build_tokenizer
from sacglam.text import PromptTemplate, TextCodec
from sacglam.text import codec as codec_module
from sacglam.text.recent import Recent

WORDS = "a b c d go to red blue green lion Goal Action : , .".split()
TEXTS = ["go to red", " go", "", "a b c d", " lion", "unheard of", "\nAction:"]


class Counting:
    """A tokenizer that counts how often it is called, and with how many texts."""

    def __init__(self) -> None:
        self.tokenizer = build_tokenizer(WORDS)
        self.calls: list[int] = []

    def __call__(self, text: Any, **options: Any) -> Any:
        self.calls.append(len(text) if isinstance(text, list) else 1)
        return self.tokenizer(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def make(**template: Any) -> tuple[TextCodec, Counting]:
    tokenizer = Counting()
    codec = TextCodec(tokenizer, PromptTemplate(**template), encoder_decoder=False)
    tokenizer.calls.clear()
    return codec, tokenizer


@pytest.mark.filterwarnings("ignore:the tokenizer does not know")
def test_many_at_once_are_as_one_by_one():
    singly, _ = make()
    together, tokenizer = make()
    together.prepare(TEXTS * 2)
    assert tokenizer.calls == [len(TEXTS)]
    for text in TEXTS:
        assert np.array_equal(together.ids(text), singly.ids(text))
        assert together.ids(text).dtype == np.int32
    assert tokenizer.calls == [len(TEXTS)]
    together.prepare([*TEXTS, "c d"])
    assert tokenizer.calls == [len(TEXTS), 1]


def test_prompts_take_one_call():
    codec, tokenizer = make(history=1, list_actions=True)
    parts = [("lion", f"red {word}", [("blue", "go")], ["go to", f"to {word}"]) for word in "abcd"]
    together = codec.prompts(parts)
    assert len(tokenizer.calls) == 1
    fresh, _ = make(history=1, list_actions=True)
    for ids, each in zip(together, parts, strict=True):
        assert np.array_equal(ids, fresh.prompt(*each))


def test_what_was_forgotten_is_tokenised_again(monkeypatch: Any):
    monkeypatch.setattr(codec_module, "REMEMBERED_TEXTS", 2)
    codec, tokenizer = make()
    want = [codec.ids(word).tolist() for word in WORDS]
    codec.prepare(WORDS)  # far more than it can hold
    assert [codec.ids(word).tolist() for word in WORDS] == want
    tokenizer.calls.clear()
    for _ in range(3):
        codec.ids("go")
        codec.ids("to")
    assert len(tokenizer.calls) <= 2
    assert len(codec._recent) <= 4


def test_the_unknown_token_is_warned_of_once_however_it_comes():
    codec, _ = make()
    with pytest.warns(UserWarning, match="does not know 'zebra' of 'zebra'") as seen:
        codec.prepare(["go", "zebra", "gnu"])
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codec.ids("yak")


@pytest.mark.parametrize("at_once", [False, True])
def test_half_of_a_surrogate_pair_is_named(at_once: bool):
    codec, _ = make()
    bad = "go to \ud83d"
    with pytest.raises(EnvironmentProtocolError, match=r"'go to \\ud83d' .* at character 6"):
        codec.prepare(["go", bad]) if at_once else codec.ids(bad)
    assert codec.ids("go").tolist() == make()[0].ids("go").tolist()


def test_recent_entries_stay():
    recent: Recent[int, str] = Recent(10)
    for k in range(1000):
        recent.put(k, str(k))
        assert recent.get(0) == "0"  # used all the time
        assert all(j in recent for j in range(max(0, k - 4), k + 1))
        assert len(recent) <= 20
    assert 500 not in recent
    assert recent.get(500) is None
