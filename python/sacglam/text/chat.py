"""The frame that a tokenizer's chat template puts around what a user says."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError

_MESSAGE = "@@the message@@"


def chat_frame(tokenizer: Any) -> tuple[str, str]:
    """What stands before a user's first message, special tokens and a default system message
    included, and what from its end up to where the assistant's answer begins.

    Of models that can think before they answer, the answer begins after an empty thought, where
    their template has a way to say so (`enable_thinking`).

    Raises:
        ConfigError: the tokenizer has no chat template, or one that cannot be used.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "prompt.chat is true, but the model's tokenizer has no chat template: choose a model "
            "that was trained to chat (an -Instruct one), or set prompt.chat to false"
        )
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": _MESSAGE}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
    except Exception as error:  # whatever a template's own code raises
        raise ConfigError(
            f"prompt.chat is true, but the tokenizer's chat template fails ({error}): mend it, or "
            "set prompt.chat to false"
        ) from error
    before, message, after = text.partition(_MESSAGE)
    if not message or _MESSAGE in after or not after:
        raise ConfigError(
            "prompt.chat is true, but the tokenizer's chat template does not write a user's "
            f"message once, followed by where the answer begins (it gives {text!r}): mend it, or "
            "set prompt.chat to false"
        )
    return before, after
