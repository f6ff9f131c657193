"""What is installed, what was compiled, what is missing and how to get it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import os
import platform
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .text import MISSING, size

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text


class _Optional(NamedTuple):
    module: str
    distribution: str
    needed_for: str
    install: str
    needs_gpu: bool = False


_OPTIONAL = (
    _Optional("triton", "triton", "fused kernels on an NVIDIA GPU",
              "pip install 'sacglam[gpu]'", needs_gpu=True),
    _Optional("flash_attn", "flash-attn", "FlashAttention in T5's cross-attention on an NVIDIA GPU",
              "pip install 'sacglam[flash-attn]' --no-build-isolation", needs_gpu=True),
    _Optional("minigrid", "minigrid", "the babyai/... environments",
              "pip install 'sacglam[babyai]'"),
    _Optional("pytest_benchmark", "pytest-benchmark", "sacglam bench",
              "pip install 'sacglam[bench]'"),
)  # fmt: skip
_REQUIRED = ("torch", "transformers", "tokenizers", "peft", "safetensors", "numpy", "rich",
             "matplotlib", "tensorboard")  # fmt: skip
_MANY = 8  # environments of one family


def collect() -> dict[str, Any]:
    """Look at the installation. Nothing is changed and nothing is raised: what cannot be loaded
    is part of the answer.

    Returns:
        A dictionary that json can write: `sacglam` {version, path}, `native` {available, path,
        version, built_with, error}, `machine` {system, cpu, cores, memory_bytes, gpus: [{name,
        memory_bytes, capability}]}, `versions` {distribution: version or None}, `torch`
        {available, device, cuda, threads, error}, `optional` [{name, version, state:
        "ok" | "missing" | "broken" | "unused", needed_for, install, error}], `problems` [str].
    """
    torch = _torch()
    native = _native()
    optional = [_look_for(item, has_gpu=bool(torch["gpus"])) for item in _OPTIONAL]
    versions = {"python": platform.python_version(), "sacglam": _version("sacglam")}
    versions |= {name: _version(name) for name in _REQUIRED}
    versions |= {item["name"]: item["version"] for item in optional}
    machine = _machine() | {"gpus": torch.pop("gpus")}
    package = sys.modules[__name__.partition(".")[0]]
    path = getattr(package, "__file__", None)
    return {
        "sacglam": {
            "version": getattr(package, "__version__", versions["sacglam"]),
            "path": str(Path(path).parent) if path else None,
        },
        "native": native,
        "machine": machine,
        "versions": versions,
        "torch": torch,
        "optional": optional,
        "problems": _problems(native, torch, versions, machine),
    }


def render(report: dict[str, Any]) -> RenderableType:
    """The result of `collect` for a person. Missing keys are tolerated, and a caller may add
    `environments` [str], the ids that are registered, and `machine.multiplies_bfloat16` (bool).
    Nothing is printed."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    native, machine = report.get("native", {}), report.get("machine", {})
    torch, versions = report.get("torch", {}), report.get("versions", {})
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    ours = report.get("sacglam", {})
    facts.add_row(
        "sacglam", Text(f"{ours.get('version') or MISSING}  ({ours.get('path') or MISSING})")
    )
    if native.get("available"):
        built = ", ".join(f"{k} {v}" for k, v in (native.get("built_with") or {}).items())
        facts.add_row("native part", Text("compiled", style="green"))
        facts.add_row("", Text(f"{native.get('path')}"))
        facts.add_row("", Text(f"built with {built or 'an unknown compiler'}"))
    else:
        facts.add_row("native part", Text("does not load", style="bold red"))
    gpus = machine.get("gpus") or []
    facts.add_row("python", f"{versions.get('python') or MISSING}")
    facts.add_row("system", Text(f"{machine.get('system') or MISSING}"))
    facts.add_row(
        "cpu",
        Text(
            f"{machine.get('cpu') or MISSING}, {machine.get('cores') or MISSING} cores, "
            f"{size(machine.get('memory_bytes'))} memory"
        ),
    )
    if "multiplies_bfloat16" in machine:
        has = machine["multiplies_bfloat16"]
        facts.add_row("", f"{'multiplies' if has else 'no instructions for'} bfloat16")
    for gpu in gpus:
        facts.add_row(
            "gpu", Text(f"{gpu.get('name')}, {size(gpu.get('memory_bytes'))}, "
                        f"compute capability {gpu.get('capability')}")
        )  # fmt: skip
        if _before_ampere(gpu.get("capability")):
            facts.add_row("", "sacglam's kernels need 8.0 or more: torch's own are taken")
    if not gpus:
        facts.add_row("gpu", "none that torch can use")
    cuda = f"built for CUDA {torch['cuda']}" if torch.get("cuda") else "built without CUDA"
    facts.add_row("torch", f"{versions.get('torch') or MISSING}, {cuda}")
    facts.add_row(
        "", f"device {torch.get('device') or MISSING}, {torch.get('threads') or MISSING} threads"
    )
    others = [n for n in _REQUIRED if n != "torch"]
    facts.add_row("packages", ", ".join(f"{n} {versions.get(n) or MISSING}" for n in others))
    if report.get("environments"):
        facts.add_row("environments", Text(", ".join(_families(report["environments"]))))
    parts: list[RenderableType] = [facts, Text(), Text("optional", style="bold")]
    extras = Table.grid(padding=(0, 2))
    extras.add_column(no_wrap=True)
    extras.add_column(overflow="fold")
    for item in report.get("optional", []):
        extras.add_row(*_optional_cells(item))
    parts += [extras, Text()]
    problems = report.get("problems")
    for problem in problems or []:
        parts.append(Text(f"problem: {problem}", style="bold red"))
    if problems == []:
        parts.append(Text("Everything that is needed is there.", style="green"))
    return Group(*parts)


def _families(environments: list[str]) -> list[str]:
    """Ids, but of a large family its name and how many it has."""
    sizes = Counter(name.partition("/")[0] for name in environments)
    shown: dict[str, None] = {}
    for name in environments:
        family = name.partition("/")[0]
        large = sizes[family] > _MANY
        shown[f"{family}/... ({sizes[family]}: sacglam.list_envs())" if large else name] = None
    return list(shown)


def _optional_cells(item: dict[str, Any]) -> tuple[str, Text]:
    from rich.text import Text

    name, state, purpose = item.get("name"), item.get("state"), item.get("needed_for")
    if state == "ok":
        cell = Text(f"{item.get('version') or 'installed'}", style="green")
        cell.append(f"  {purpose}", style="dim")
        return str(name), cell
    if state == "unused":
        cell = Text("missing, not needed without an NVIDIA GPU", style="dim")
    elif state == "broken":
        cell = Text(f"does not load: {item.get('error')}", style="yellow")
    else:
        cell = Text("missing", style="yellow")
    cell.append(f"\nfor {purpose}", style="default")
    cell.append(f"\n{item.get('install')}", style="default")
    return str(name), cell


def _native() -> dict[str, Any]:
    """`sacglam._C`, looked up by name: this module stays usable when it does not load."""
    found: dict[str, Any] = {
        "available": False, "path": None, "version": None, "built_with": {}, "error": None,
    }  # fmt: skip
    try:
        module = importlib.import_module(__name__.partition(".")[0] + "._C")
    except ImportError as error:
        found["error"] = str(error)
        return found
    path = getattr(module, "__file__", None)
    found.update(available=True, path=path, version=getattr(module, "__version__", None))
    info = getattr(module, "build_info", None)
    info = info() if callable(info) else info
    if isinstance(info, dict):
        found["built_with"] = {str(key): str(value) for key, value in info.items()}
    elif path:
        found["built_with"] = _compiler(Path(path))
    return found


def _compiler(library: Path) -> dict[str, str]:
    """The compiler's own note in the library (ELF section .comment)."""
    try:
        content = library.read_bytes()
    except OSError:
        return {}
    for name, pattern in (
        ("clang", rb"clang version (\d[\w.]*)"),
        ("GCC", rb"GCC: \([^)\0]*\) (\d[\w.]*)"),
    ):
        if match := re.search(pattern, content):
            return {name: match.group(1).decode()}
    return {}


def _torch() -> dict[str, Any]:
    found: dict[str, Any] = {
        "available": False, "device": None, "cuda": None, "threads": None, "gpus": [],
        "error": None,
    }  # fmt: skip
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library that it links is missing
        found["error"] = str(error)
        return found
    found.update(
        available=True, device="cpu", cuda=torch.version.cuda, threads=torch.get_num_threads()
    )
    try:
        if torch.cuda.is_available():
            found["device"] = "cuda"
            for i in range(torch.cuda.device_count()):
                properties = torch.cuda.get_device_properties(i)
                found["gpus"].append(
                    {
                        "name": properties.name,
                        "memory_bytes": properties.total_memory,
                        "capability": f"{properties.major}.{properties.minor}",
                    }
                )
    except RuntimeError as error:
        found["error"] = f"the GPU cannot be used: {error}"
    return found


def _before_ampere(capability: str | None) -> bool:
    major = (capability or "").partition(".")[0]
    return major.isdigit() and int(major) < 8


def _look_for(item: _Optional, *, has_gpu: bool) -> dict[str, Any]:
    version, error = _version(item.distribution), None
    state = "ok"
    try:
        # minigrid and what it imports print a banner.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            importlib.import_module(item.module)
    except ModuleNotFoundError as problem:
        # Without a module of that name it is missing; without one that it imports, broken.
        named = (problem.name or "").partition(".")[0]
        state = "missing" if named == item.module else "broken"
        error = None if state == "missing" else str(problem)
    except Exception as problem:  # a package may fail in any way when imported
        state, error = "broken", f"{type(problem).__name__}: {problem}".splitlines()[0]
    if state == "missing" and item.needs_gpu and not has_gpu:
        state = "unused"
    return {
        "name": item.distribution,
        "version": version,
        "state": state,
        "needed_for": item.needed_for,
        "install": item.install,
        "error": error,
    }


def _machine() -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": _usable_cores(),
        "memory_bytes": _memory_bytes(),
    }


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _problems(
    native: dict[str, Any],
    torch: dict[str, Any],
    versions: dict[str, str | None],
    machine: dict[str, Any],
) -> list[str]:
    problems = []
    if not native["available"]:
        problems.append(
            f"sacglam._C does not load ({native['error']}); compile it again in the checkout with "
            "`pip install -e .` (needs a C++20 compiler: `apt install build-essential`)"
        )
    if not torch["available"]:
        problems.append(f"torch does not load ({torch['error']}); `pip install --upgrade sacglam`")
    elif torch["error"]:
        problems.append(torch["error"])
    absent = [name for name in _REQUIRED if versions.get(name) is None]
    if absent:
        problems.append(f"not installed: {', '.join(absent)}; `pip install {' '.join(absent)}`")
    if (torch["threads"] or 0) > machine["cores"]:
        problems.append(
            f"torch uses {torch['threads']} threads on {machine['cores']} usable cores, which "
            f"slows it down; set OMP_NUM_THREADS={machine['cores']}"
        )
    return problems
