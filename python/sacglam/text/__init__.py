"""Text to token ids, once: prompt templates as segments, and the codec that tokenises them."""

from __future__ import annotations

from .chat import chat_frame
from .codec import TextCodec
from .template import PromptTemplate

__all__ = ["PromptTemplate", "TextCodec", "chat_frame"]
