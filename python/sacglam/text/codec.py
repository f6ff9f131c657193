"""Tokenises segments, and remembers their ids."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CandidateError, EnvironmentProtocolError
from .recent import Recent
from .template import PromptTemplate

Ids = npt.NDArray[np.int32]

# How many texts are remembered: some tens of megabytes where all are different.
REMEMBERED_TEXTS = 1 << 16


class TokenisationWarning(UserWarning):
    """Segments do not tokenise to the ids of the whole prompt, or a word is unknown."""


class TextCodec:
    """Turns segments and actions into token ids with a Hugging Face tokenizer.

    A prompt is *defined* as the concatenation of its segments' ids, framed by the special tokens
    that the tokenizer itself would add (for a causal model only those in front; none for a chat,
    whose template brings its own). `check` says where that differs from tokenising the joined text.

    Args:
        tokenizer: any Hugging Face tokenizer.
        template: the prompt's segments.
        encoder_decoder: whether actions go to a decoder (then special tokens close the prompt).
    """

    def __init__(self, tokenizer: Any, template: PromptTemplate, *, encoder_decoder: bool) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.encoder_decoder = encoder_decoder
        self._recent: Recent[str, Ids] = Recent(REMEMBERED_TEXTS)
        self._warned_unknown = False
        self.prefix, self.suffix = _special_frame(tokenizer)
        if template.before or template.after:
            self.prefix = self.prefix[:0]
        if not encoder_decoder:
            self.suffix = self.suffix[:0]

    def ids(self, text: str) -> Ids:
        """Token ids of one segment, without special tokens; int32 [n], remembered."""
        found = self._recent.get(text)
        if found is None:
            found = self._remember(text, self._tokenise([text])[0])
        return found

    def prepare(self, texts: Iterable[str]) -> None:
        """Tokenise those segments that are not remembered in one call: half the time, or less."""
        new = [text for text in dict.fromkeys(texts) if text not in self._recent]
        if new:
            for text, raw in zip(new, self._tokenise(new), strict=True):
                self._remember(text, raw)

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        try:
            return self.tokenizer(texts, add_special_tokens=False).input_ids
        except (TypeError, UnicodeEncodeError):
            for text in texts:
                _refuse_surrogates(text)
            raise

    def _remember(self, text: str, raw: Sequence[int]) -> Ids:
        found = np.asarray(raw, dtype=np.int32)
        found.flags.writeable = False
        self._recent.put(text, found)
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        if unknown is not None and not self._warned_unknown and (found == unknown).any():
            self._warned_unknown = True
            warnings.warn(
                f"the tokenizer does not know {self._unknown_of(text)}: it becomes the unknown "
                "token. For the built-in tiny models, add the missing words to the "
                "environment's `vocabulary` attribute (a list of texts).",
                TokenisationWarning,
                stacklevel=3,
            )
        return found

    def unknown_words(self, texts: Iterable[str]) -> list[str]:
        """Some of the parts of texts that become the unknown token, quoted; [] where the tokenizer
        does not tell."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        if backend is None or unknown is None:
            return []
        found: dict[str, None] = {}
        for text in texts:
            encoded = backend.encode(text, add_special_tokens=False)
            spans = zip(encoded.ids, encoded.offsets, strict=True)
            found.update(dict.fromkeys(repr(text[a:b]) for k, (a, b) in spans if k == unknown))
        return [*found][:5]

    def _unknown_of(self, text: str) -> str:
        """The parts of a text that are unknown, or else where they are."""
        shown = repr(text if len(text) <= 80 else f"{text[:77]}...")
        return f"{', '.join(self.unknown_words([text])) or 'a part'} of {shown}"

    def action(self, action: str) -> Ids:
        """Token ids of an action as a candidate continuation; int32 [n].

        Raises:
            CandidateError: the action's text gives no tokens.
        """
        ids = self.ids(self.template.action(action))
        if not len(ids):
            raise CandidateError(
                f"the action {action!r} has no tokens: every candidate needs a non-blank text"
            )
        return ids

    def opening(self) -> Ids:
        """Special tokens in front, instruction and goal label; int32 [n]."""
        return np.concatenate([self.prefix, self.ids(self.template.opening)])

    def closing(self) -> Ids:
        """The last action label and the special tokens at the end; int32 [n]."""
        return np.concatenate([self.ids(self.template.closing), self.suffix])

    def prompt(
        self,
        goal: str,
        observation: str,
        history: Sequence[tuple[str, str]] = (),
        actions: Sequence[str] = (),
    ) -> Ids:
        """The whole prompt's ids; int32 [n]. Arguments as `PromptTemplate.segments`."""
        return self.prompts([(goal, observation, history, actions)])[0]

    def prompts(
        self, parts: Iterable[tuple[str, str, Sequence[tuple[str, str]], Sequence[str]]]
    ) -> list[Ids]:
        """Whole prompts' ids, each int32 [n]; for each the arguments of `prompt`."""
        segments = [self.template.segments(*each) for each in parts]
        self.prepare(text for each in segments for text in each)
        return [
            np.concatenate([self.prefix, *map(self.ids, each), self.suffix]) for each in segments
        ]

    def text(self, text: str) -> Ids:
        """A prompt given as one text, framed by the special tokens; int32 [n]."""
        return np.concatenate([self.prefix, self.ids(text), self.suffix])

    def check(self, goal: str, observation: str, actions: Sequence[str]) -> bool:
        """Compare segment-wise ids with those of the joined text; warn where they differ."""
        segments = self.template.segments(goal, observation, (), actions)
        apart = np.concatenate([self.ids(s) for s in segments])
        together = np.asarray(
            self.tokenizer("".join(segments), add_special_tokens=False).input_ids, dtype=np.int32
        )
        if np.array_equal(apart, together):
            return True
        at = int(
            next(
                (k for k, (a, b) in enumerate(zip(apart, together, strict=False)) if a != b),
                min(len(apart), len(together)),
            )
        )
        here, there = (self.tokenizer.decode(ids[at : at + 4]) for ids in (apart, together))
        warnings.warn(
            "this tokenizer gives other ids for the prompt's segments than for the whole prompt "
            f"(first difference at token {at}: apart {here!r}, together {there!r}). Training stays "
            "consistent, since acting and replay both use the segments; a pretrained model sees "
            "slightly unusual token boundaries.",
            TokenisationWarning,
            stacklevel=2,
        )
        return False


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise EnvironmentProtocolError(
            f"the text {text!r} has half of a surrogate pair at character {error.start}, which no "
            "encoding has: clean it with text.encode(errors='replace').decode(), or read the file "
            "that it comes from with open(..., errors='replace')"
        ) from None


def _special_frame(tokenizer: Any) -> tuple[Ids, Ids]:
    """The special tokens that the tokenizer puts before and after a text."""
    bare = list(tokenizer("a", add_special_tokens=False).input_ids)
    full = list(tokenizer("a").input_ids)
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            before, after = full[:start], full[start + len(bare) :]
            break
    else:
        before, after = [], []
    return np.asarray(before, dtype=np.int32), np.asarray(after, dtype=np.int32)
