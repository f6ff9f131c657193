"""Two small models made from a configuration, with a tokenizer built from an environment's texts.

They are saved to a folder and loaded through the same path as any Hugging Face model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError
from .seeding import seeded

TINY = ("tiny-t5", "tiny-llama")
_WORDS = r"\([^)\s]*\)|\w+|[^\w\s]"


def build_tokenizer(texts: Iterable[str]) -> Any:
    """A word-level tokenizer (words, bracketed groups, punctuation) with every word of `texts`.

    Raises:
        ConfigError: the texts hold no words.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    if not words:
        raise ConfigError(
            "a tiny model needs words to build its tokenizer from: give the environment a "
            "`vocabulary` attribute (a list of texts that together hold every word it can emit)"
        )
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: k for k, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def save_tiny_model(
    name: str,
    texts: Iterable[str],
    folder: str | Path,
    *,
    seed: int = 0,
    hidden_size: int = 64,
    layers: int = 2,
    heads: int = 4,
    feed_forward: int = 128,
) -> Path:
    """Create `tiny-t5` or `tiny-llama` with random weights and save model and tokenizer.

    Args:
        name: one of `TINY`.
        texts: what the tokenizer's vocabulary is built from.
        folder: where to save; must not hold a model yet.
        seed: of the random weights; the global generator is left as it was.
        hidden_size, layers, heads, feed_forward: the model's shape.
    """
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    tokenizer = build_tokenizer(texts)
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    with seeded(seed):
        model: Any
        if name == "tiny-llama":
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=hidden_size,
                    intermediate_size=feed_forward,
                    num_hidden_layers=layers,
                    num_attention_heads=heads,
                    max_position_embeddings=2048,
                    initializer_range=0.4 / hidden_size**0.5,  # 0.02 is for widths of 400
                    tie_word_embeddings=True,
                    **special,
                )
            )
        elif name == "tiny-t5":
            model = T5ForConditionalGeneration(
                T5Config(
                    vocab_size=len(tokenizer),
                    d_model=hidden_size,
                    d_kv=hidden_size // heads,
                    d_ff=feed_forward,
                    num_layers=layers,
                    num_heads=heads,
                    feed_forward_proj="gated-gelu",
                    dropout_rate=0.0,
                    decoder_start_token_id=tokenizer.pad_token_id,
                    **special,
                )
            )
            # Positions reach T5 through these biases alone. From near zero a small model needs
            # thousands of updates to tell a word's neighbours apart; strong random ones give
            # each head some distances to look at from the first.
            for module in model.modules():
                if hasattr(module, "relative_attention_bias"):
                    torch.nn.init.normal_(module.relative_attention_bias.weight, std=3.0)
        else:
            raise ConfigError(f"unknown tiny model {name!r}; choose one of {', '.join(TINY)}")
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
