"""Tokenising texts one by one, many at once, and again after they were forgotten."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sacglam.errors import CandidateError, EnvironmentProtocolError
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


def test_the_prompt_is_as_the_template_says():
    given = ("lion", "red", [("a", "go"), ("b", "to"), ("c", "go")], ["go", "to"])
    assert "".join(PromptTemplate().segments(*given)) == "Goal: lion\nred\nAction:"
    whole = PromptTemplate(instruction="d", history=2, list_actions=True)
    assert "".join(whole.segments(*given)) == (
        "d\nGoal: lion\nb\nAction: to\nc\nAction: go\nred\nPossible actions: go, to\nAction:"
    )
    chat = PromptTemplate(before="<user>", after="<model>")
    assert "".join(chat.segments(*given)) == "<user>Goal: lion\nred<model>Action:"


class Framing(Counting):
    """Puts special tokens around every text, unless it is told not to."""

    def __call__(self, text: Any, add_special_tokens: bool = True, **options: Any) -> Any:
        found = super().__call__(text, add_special_tokens=False, **options)
        if add_special_tokens:
            many = isinstance(text, list)
            framed = [[1, 1, *ids, 2] for ids in (found.input_ids if many else [found.input_ids])]
            found["input_ids"] = framed if many else framed[0]
        return found


@pytest.mark.parametrize(
    ("encoder_decoder", "template", "before", "after"),
    [
        (False, {}, [1, 1], []),
        (True, {}, [1, 1], [2]),
        (False, {"before": "a "}, [], []),
        (False, {"after": "a "}, [], []),
    ],
    ids=["causal", "encoder-decoder", "chat before", "chat after"],
)
def test_special_tokens_frame_a_prompt(
    encoder_decoder: bool, template: dict[str, str], before: list[int], after: list[int]
):
    own = PromptTemplate(**template)
    codec = TextCodec(Framing(), own, encoder_decoder=encoder_decoder)
    bare = TextCodec(build_tokenizer(WORDS), own, encoder_decoder=encoder_decoder)
    prompt = codec.prompt("lion", "red")
    assert prompt.dtype == np.int32
    assert prompt.tolist() == [*before, *bare.prompt("lion", "red"), *after]
    assert codec.text("go").tolist() == [*before, *bare.ids("go"), *after]
    whole = [codec.opening(), codec.ids(" lion"), codec.ids("\nred"), codec.closing()]
    assert np.concatenate(whole).tolist() == prompt.tolist()
    assert codec.action("go").tolist() == bare.ids(" go").tolist(), "an action has none"


def test_remembered_ids_cannot_be_changed():
    codec, _ = make()
    with pytest.raises(ValueError, match="read-only"):
        codec.ids("go to")[0] = 0


def test_an_action_without_tokens_is_named():
    with pytest.raises(CandidateError, match=r"the action '  ' has no tokens"):
        make()[0].action("  ")


def test_the_unknown_parts_of_texts_are_told():
    codec, _ = make()
    assert codec.unknown_words(["go to zebra, gnu", "a zebra. lion"]) == ["'zebra'", "'gnu'"]
    assert codec.unknown_words(["go to red"]) == []
    assert len(codec.unknown_words(["k l m n o p q r s t"])) < 10
    warned = pytest.warns(codec_module.TokenisationWarning, match="does not know 'zebra' of")
    with warned as seen:
        codec.ids("zebra" + " go" * 1000)
    assert len(str(seen[0].message)) < 400, "a long text is not shown whole"


@pytest.mark.parametrize("lacks", ["backend_tokenizer", "unk_token_id"])
def test_a_tokenizer_that_tells_of_no_unknown_parts(lacks: str):
    class Silent(Counting):
        def __getattr__(self, name: str) -> Any:
            if name == lacks:
                raise AttributeError(name)
            return super().__getattr__(name)

    codec = TextCodec(Silent(), PromptTemplate(), encoder_decoder=False)
    assert codec.unknown_words(["zebra"]) == []
    if lacks == "backend_tokenizer":
        with pytest.warns(codec_module.TokenisationWarning, match="a part of 'zebra'"):
            codec.ids("zebra")
    else:
        assert len(codec.ids("zebra")) == 1


def test_what_the_tokenizer_itself_raises_is_not_hidden():
    class Broken(Counting):
        def __call__(self, text: Any, **options: Any) -> Any:
            if isinstance(text, list):
                raise TypeError("broken")
            return super().__call__(text, **options)

    codec = TextCodec(Broken(), PromptTemplate(), encoder_decoder=False)
    with pytest.raises(TypeError, match="broken"):
        codec.ids("go")


class Merging(Framing):
    """Has one token, 3, for "red lion" and what follows; in parts it is as any other."""

    def __call__(self, text: Any, **options: Any) -> Any:
        if isinstance(text, str) and "lion\nred" in text:
            cut = text.replace("lion\nred", "zebra")
            return super().__call__(cut, **options)
        return super().__call__(text, **options)


def test_segments_are_compared_with_the_whole_prompt():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for tokenizer in (Counting(), Framing()):
            codec = TextCodec(tokenizer, PromptTemplate(), encoder_decoder=False)
            assert codec.check("lion", "red", ["go"]) is True
    codec = TextCodec(Merging(), PromptTemplate(), encoder_decoder=False)
    # Goal : lion red Action : , and in one piece: Goal : <unk> Action :
    says = r"difference at token 2: apart 'lion red Action :', together '<unk> Action :'"
    with pytest.warns(codec_module.TokenisationWarning, match=says) as seen:
        assert codec.check("lion", "red", ["go"]) is False
    assert seen[0].filename == __file__, "it is the caller's"


def test_a_whole_prompt_that_ends_sooner_is_another():
    class Ending(Counting):
        def __call__(self, text: Any, **options: Any) -> Any:
            whole = isinstance(text, str) and text.endswith("Action:")
            return super().__call__(text[:-1] if whole else text, **options)

    codec = TextCodec(Ending(), PromptTemplate(), encoder_decoder=False)
    with pytest.warns(codec_module.TokenisationWarning, match="token 5: apart ':', together ''"):
        assert codec.check("lion", "red", ["go"]) is False


def test_recent_entries_stay():
    recent: Recent[int, str] = Recent(10)
    for k in range(1000):
        recent.put(k, str(k))
        assert recent.get(0) == "0"  # used all the time
        assert all(j in recent for j in range(max(0, k - 4), k + 1))
        assert len(recent) <= 20
    assert 500 not in recent
    assert recent.get(500) is None
