"""Importing this makes `sacglam` and `sacglam.kernels` importable from the checkout around it,
where they are not installed: worker processes need that before they import anything else."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def use_checkout() -> None:
    if importlib.util.find_spec("sacglam") is None:
        sys.path.insert(0, str(ROOT / "python"))
    import sacglam

    if importlib.util.find_spec("sacglam.kernels") is None:
        spec = importlib.util.spec_from_file_location(
            "sacglam.kernels",
            ROOT / "kernels" / "__init__.py",
            submodule_search_locations=[str(ROOT / "kernels")],
        )
        if spec is None or spec.loader is None:
            raise ImportError(f"no kernels folder beside {ROOT / 'python'}")
        module = importlib.util.module_from_spec(spec)
        sys.modules["sacglam.kernels"] = module
        spec.loader.exec_module(module)
        sacglam.kernels = module


use_checkout()
