"""sacglam train | check | eval | play | plot | table | bench | demo | doctor"""

from __future__ import annotations

import argparse
import io
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import SacglamError


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="sacglam",
        description="Train language-model agents with SAC and hindsight relabeling.",
    )
    parser.add_argument("--version", action="version", version=f"sacglam {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train an agent", allow_abbrev=False)
    train.add_argument("--resume", metavar="DIR", help="continue the run in DIR")
    train.set_defaults(run="train")

    check = commands.add_parser(
        "check",
        help="before training: are the scores right, how long will it take",
        description="Takes what `train` takes, and trains nothing.",
        allow_abbrev=False,
    )
    check.set_defaults(run="check")

    for command in (train, check):
        command.add_argument("--config", metavar="FILE", help="YAML with any of the fields below")
        command.add_argument(
            "--preset", metavar="NAME", help="settings by name: paper, magellan, glam, babyai"
        )
        if len(sys.argv) < 2 or sys.argv[1] in ("train", "check") or "pytest" in sys.modules:
            from .flags import add_config_flags

            add_config_flags(command)

    evaluate = commands.add_parser("eval", help="evaluate a run on fresh episodes")
    evaluate.add_argument("dir", metavar="DIR")
    evaluate.add_argument("--episodes", type=int, default=None)
    evaluate.add_argument("--split", choices=("train", "test"), default=None)
    evaluate.add_argument(
        "--seed", type=int, default=None, help="other episodes than the run's own"
    )
    chosen = evaluate.add_mutually_exclusive_group()
    chosen.add_argument(
        "--greedy", action="store_true", default=None, help="the most probable actions [the run's]"
    )
    chosen.add_argument(
        "--sample", dest="greedy", action="store_false", help="sampled actions [the run's]"
    )
    evaluate.add_argument(
        "--temperature", type=float, default=None, help="of sampled actions [the run's]"
    )
    evaluate.set_defaults(run="evaluate")

    play = commands.add_parser("play", help="watch a trained agent, step by step")
    play.add_argument("dir", metavar="DIR")
    play.add_argument("--episodes", type=int, default=1)
    play.add_argument("--goal", default=None, help="ask for this goal")
    play.add_argument("--seed", type=int, default=None)
    play.add_argument(
        "--sample", action="store_true", help="sample, also where the run is evaluated greedily"
    )
    for command in (evaluate, play):
        command.add_argument("--device", default=None, help="cpu, cuda, ... [the run's]")
        command.add_argument("--threads", type=int, default=None, help="torch's [the run's]")
    play.set_defaults(run="play")

    plot = commands.add_parser("plot", help="draw learning curves of one or more runs")
    plot.add_argument("dirs", metavar="DIR", nargs="+")
    plot.add_argument(
        "--out",
        default=None,
        metavar="FILE",
        help=".png, .pdf or .svg [curve.png in the run's folder; of several runs, "
        "curves.png in the current folder]",
    )
    plot.set_defaults(run="plot")

    table = commands.add_parser("table", help="compare runs, one line each")
    table.add_argument("dirs", metavar="DIR", nargs="+")
    table.add_argument("--csv", default=None, metavar="FILE", help="all columns, unrounded")
    table.set_defaults(run="table")

    bench = commands.add_parser("bench", help="run a throughput suite of bench/")
    bench.add_argument("suite", metavar="SUITE", help="a suite, or all")
    bench.add_argument("--quick", action="store_true", help="within 60 s a suite")
    bench.add_argument("--json", default=None, metavar="FILE")
    bench.set_defaults(run="bench")

    demo = commands.add_parser("demo", help="train on playground/small and show that it learned")
    demo.add_argument("--out", default="runs/demo", metavar="DIR")
    demo.add_argument("--seeds", type=int, nargs="+", default=[0])
    demo.set_defaults(run="demo")

    doctor = commands.add_parser("doctor", help="what is installed, what is missing, how to get it")
    doctor.set_defaults(run="doctor")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; errors of sacglam end with one line and status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what a terminal cannot show
    warnings.showwarning = _show_warning
    try:
        parser = build_parser()
        arguments, unknown = parser.parse_known_args(argv)
        if unknown:
            parser.error(_unrecognised(unknown, arguments.command))
        from . import commands

        if "" not in sys.path:
            sys.path.insert(0, "")  # as `python -m` does: --env my_module:MyEnv is found here
        return int(getattr(commands, arguments.run)(arguments) or 0)
    except SacglamError as error:
        return _said(error, f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        print("\nsacglam: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if not isinstance(error, OSError) or not _is_ours(error):
            if sys.version_info < (3, 11):  # later ones have them in the traceback
                _show_notes(error)
            raise  # of an environment or a callback: where it was counts
        if isinstance(error, BrokenPipeError):  # whoever read what is printed has gone
            return 141
        return _said(error, str(error))  # a full disk, a folder that is read-only


def _show_warning(message: Any, category: type, *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning | RuntimeWarning):
        print(f"sacglam: warning: {message}", file=sys.stderr)


def _unrecognised(arguments: Sequence[str], command: str) -> str:
    """Which arguments nobody knows, and which flags are near them."""
    near: list[str] = []
    if command in ("train", "check"):
        from ..config import near_fields

        flags = [a.partition("=")[0] for a in arguments if a.startswith("--")]
        names = [n for f in flags for n in near_fields(f[2:].replace("-", "_"))]
        near = [f"--{name.replace('_', '-')}" for name in names]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"unrecognized arguments: {' '.join(arguments)}{hint}"


def _is_ours(error: Exception) -> bool:
    """Whether it was raised by this package or a library, called by nobody else's code."""
    from .. import kernels

    package = Path(__file__).resolve().parents[1]
    ours = [str(package), str(Path(kernels.__file__).resolve().parent)]
    ours += [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    environments = str(package / "envs" / "vector.py")  # an environment may be a library's
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return environments not in files and all(
        file.startswith(("<", *ours)) or str(Path(file).resolve()).startswith(tuple(ours))
        for file in files
    )


def _said(error: Exception, text: str) -> int:
    print(f"sacglam: {text}", file=sys.stderr)
    _show_notes(error)
    return 2


def _show_notes(error: Exception) -> None:
    for line in getattr(error, "__notes__", []):
        print(f"sacglam: {line}", file=sys.stderr)
