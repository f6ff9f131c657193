"""`import sacglam` is cheap: nothing heavy is imported before it is used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HEAVY = [
    "torch",
    "numpy",
    "triton",
    "flash_attn",
    "transformers",
    "tokenizers",
    "peft",
    "matplotlib",
    "tensorboard",
    "minigrid",
    "gymnasium",
    "sacglam.models",
    "sacglam.training",
]


def fresh(code: str, folder: Path) -> str:
    """What a new interpreter prints, started where the repository is not on its path."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_import_brings_in_nothing_heavy(tmp_path: Path) -> None:
    code = "import json, sys, sacglam; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(fresh(code, tmp_path)))
    assert "sacglam" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_import_takes_under_a_second(tmp_path: Path) -> None:
    # The processor's seconds, not the clock's: a busy machine does not count. Torch alone would
    # take more than one.
    code = (
        "import time; begin = time.process_time(); import sacglam; "
        "print(time.process_time() - begin)"
    )
    assert float(fresh(code, tmp_path)) < 1.0


def test_listing_the_package_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "import json, sys, sacglam; dir(sacglam); print(json.dumps(sorted(sys.modules)))"
    assert set(json.loads(fresh(code, tmp_path))).isdisjoint(HEAVY)


def test_every_public_name_can_be_had(tmp_path: Path) -> None:
    code = (
        "import sacglam\n"
        "missing = [n for n in getattr(sacglam, '__all__', []) if not hasattr(sacglam, n)]\n"
        "print(missing)"
    )
    assert fresh(code, tmp_path).strip() == "[]"


def test_an_unknown_name_is_an_attribute_error(tmp_path: Path) -> None:
    code = "import sacglam\ntry: sacglam.no_such_name\nexcept AttributeError as error: print(error)"
    assert "no_such_name" in fresh(code, tmp_path)
