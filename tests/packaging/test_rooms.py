"""The house rule: a room of the package imports only from the rooms below it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "sacglam"
KERNELS = ROOT / "kernels"

# From the ground up. A new room needs a place here.
ROOMS = [
    "errors",
    "files",
    "_C",
    "kernels",
    "text",
    "envs",
    "models",
    "replay",
    "algorithms",
    "goals",
    "report",
    "presets",
    "config",
    "training",
    "distributed",
    "cli",
]
# Rooms that may know less than what lies below them.
ONLY = {
    "kernels": {"_C"},
    "algorithms": {"errors"},
    "report": {"errors", "files"},
    "presets": set(),
}
NEVER = {
    "text": {"kernels"},
    "models": {"envs"},
    "replay": {"models", "envs"},
    "goals": {"models"},
}
# Libraries that a room must not know of, wherever it imports them.
FOREIGN = {
    "kernels": {"transformers", "peft", "tokenizers", "gymnasium"},
    "algorithms": {"transformers", "peft", "tokenizers", "gymnasium", "numpy"},
    "envs": {"torch", "transformers", "peft", "tokenizers"},
    "replay": {"transformers", "peft", "tokenizers"},
    "report": {"transformers", "peft"},
}
# The package's root: it hands out names of every room, so that importing from it is like
# importing from the top.
TOP = "sacglam"


def allowed(room: str) -> set[str]:
    below = set(ROOMS[: ROOMS.index(room)])
    return ONLY.get(room, below - NEVER.get(room, set())) | {room}


def sources() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for folder, name in ((PACKAGE, "sacglam"), (KERNELS, "sacglam.kernels")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join([name, *parts])] = path
    return found


def room_of(module: str) -> str:
    """The room of a module of sacglam; `__main__` is part of the command line."""
    parts = module.split(".")
    if len(parts) == 1:
        return TOP
    return "cli" if parts[1] == "__main__" else parts[1]


def imports(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported, in functions and for type checkers too."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield node.lineno, first.value


def violations(module: str, path: Path) -> list[str]:
    room = room_of(module)
    found = []
    for line, name in imports(module, path):
        where = f"{path.name}:{line} ({module}) imports {name}"
        library, _, rest = name.partition(".")
        if library in FOREIGN.get(room, set()):
            found.append(f"{where}: {room} knows nothing of {library}")
        if library != "sacglam" or rest in {"", "__version__"}:
            continue
        target = room_of(name)
        if target not in ROOMS:
            found.append(f"{where}: import it from its room, not from the package's root")
        elif target not in allowed(room):
            found.append(f"{where}: {room} is not above {target}")
    return found


MODULES = sources()


def test_every_module_is_in_a_room() -> None:
    known = {*ROOMS, TOP}
    assert [name for name in MODULES if room_of(name) not in known] == [], "add it to ROOMS"


def test_rooms_import_only_from_rooms_below() -> None:
    inside = [name for name in MODULES if name != TOP]
    assert len(inside) > 20  # a wrong folder would have none, and pass
    assert [found for name in inside for found in violations(name, MODULES[name])] == []


@pytest.mark.parametrize(
    ("module", "line", "complaint"),
    [
        ("sacglam.algorithms.sac", "from ..models import policy", "algorithms is not above models"),
        ("sacglam.envs.a", "from sacglam.replay import ReplayBuffer", "envs is not above replay"),
        ("sacglam.models.a", "def f():\n    import sacglam.envs", "models is not above envs"),
        ("sacglam.kernels.a", "from sacglam import errors", "kernels is not above errors"),
        ("sacglam.training.a", "from sacglam import Policy", "not from the package's root"),
        ("sacglam.kernels.a", "import transformers.models", "knows nothing of transformers"),
        ("sacglam.replay.a", "import_module('sacglam.models')", "replay is not above models"),
    ],
)
def test_a_forbidden_import_is_found(
    tmp_path: Path, module: str, line: str, complaint: str
) -> None:
    path = tmp_path / "a.py"
    path.write_text(line + "\n")
    (found,) = violations(module, path)
    assert complaint in found


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("sacglam.training.a", "from ..models.policy import Policy"),
        ("sacglam.replay.a", "from sacglam import _C, errors"),
        ("sacglam.cli.a", "from sacglam import __version__"),
        ("sacglam.kernels.a", "from . import backend"),
        ("sacglam.models.a", "import torch, numpy"),
    ],
)
def test_a_proper_import_is_not(tmp_path: Path, module: str, line: str) -> None:
    path = tmp_path / "a.py"
    path.write_text(line + "\n")
    assert violations(module, path) == []


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for path in MODULES.values()}
    assert [f for f in folders if not (f / "__init__.py").exists()] == []


def test_native_headers_are_free_of_python_and_torch() -> None:
    headers = [path for path in (ROOT / "csrc").glob("*.hpp") if not path.name.startswith("bind")]
    assert headers
    forbidden = re.compile(r"#include\s*[<\"](pybind11|Python\.h|numpy|torch|ATen|c10)")
    assert [path.name for path in headers if forbidden.search(path.read_text())] == []
