"""Checks and times the kernels on one NVIDIA GPU, in one command:

    python bench/device.py --out results [--minutes 8.5] [--only check,head]

Writes results.json (machine, versions, command, ceilings, checks, rows) after every section and
prints a short table last. Exit status 1 if a check failed or a section broke; the rest still ran:
sections run in a process of their own, and where one breaks its device context another goes on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ON_DISK = "results.json"
BROKEN = 3  # exit status of a process whose device context is broken


class Session:
    """Collects rows, guards sections and methods, and keeps to the time limit.

    Args:
        out: folder of results.json, which is continued if it is there.
        deadline: as time.time() says it.
    """

    def __init__(self, out: Path, deadline: float) -> None:
        self.out, self.deadline = out, deadline
        self.result: dict[str, Any] = {"rows": [], "checks": [], "failures": [], "sections": {}}
        self.load()

    def load(self) -> None:
        path = self.out / ON_DISK
        if path.exists():
            self.result = json.loads(path.read_text())

    def left_s(self) -> float:
        return self.deadline - time.time()

    def section(self, name: str, run: Callable[[], None]) -> None:
        """Run one section unless it has been; a failure is recorded and the next section runs all
        the same, in another process if no more can be done in this one."""
        import torch

        if name in self.result["sections"]:
            return
        if self.left_s() <= 0:
            self.fail(name, "skipped: the time limit is reached (see --minutes)")
            return
        began = time.monotonic()
        print(f"== {name} ({self.left_s():.0f} s left)", flush=True)
        self.result["sections"][name] = None  # whoever goes on sees what was begun
        self.save()
        try:
            run()
            torch.cuda.synchronize()
        except Exception:  # reported: later sections do not depend on this one
            self.fail(name, traceback.format_exc())
        self.result["sections"][name] = round(time.monotonic() - began, 1)
        self.save()
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:  # a device context that is broken stays so
            sys.exit(BROKEN)

    def fail(self, where: str, text: str) -> None:
        self.result["failures"].append({"where": where, "error": text[-3000:]})
        print(f"FAILED {where}: {text.strip().splitlines()[-1][:200]}", flush=True)

    def check(self, suite: str, case: str, errors: dict[str, float], tolerance: float) -> None:
        """Record relative errors; NaN does not pass."""
        passed = all(error <= tolerance for error in errors.values())
        self.result["checks"].append(
            {"suite": suite, "case": case, "errors": errors, "tolerance": tolerance, "ok": passed}
        )
        if not passed:
            print(f"WRONG {suite}: {case}: {errors} over {tolerance}", flush=True)

    def record(
        self, suite: str, case: str, methods: dict[str, Any], floor_s: float | None,
        slow: bool = False,
    ) -> None:  # fmt: skip
        """Time every method and add a row for each; one that fails costs only its own row."""
        rows: list[dict[str, Any]] = []
        for name, method in methods.items():
            if self.left_s() <= 0:
                self.fail(f"{suite}: {case}: {name}", "skipped: the time limit is reached")
                continue
            try:
                row = measure(method.build() if hasattr(method, "build") else method, slow)
            except Exception:  # reported: the other methods do not depend on this one
                self.fail(f"{suite}: {case}: {name}", traceback.format_exc())
                continue
            rows.append({"suite": suite, "case": case, "method": name, **row})
        ours = next((r["median_s"] for r in rows if r["method"] == "sacglam"), None)
        for row in rows:
            row["ratio_to_sacglam"] = row["median_s"] / ours if ours else None
            row["floor_ratio"] = row["median_s"] / floor_s if floor_s else None
            print(format_row(row), flush=True)
        self.result["rows"] += rows

    def save(self) -> None:
        (self.out / ON_DISK).write_text(json.dumps(self.result, indent=1))


def measure(method: Callable[[], Any], slow: bool) -> dict[str, Any]:
    """Median seconds and spread of a call by device events, and the memory it adds at its peak."""
    import torch
    from triton.testing import do_bench

    method()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    method()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    if not slow:
        times = do_bench(method, warmup=10, rep=60, return_mode="all")
    else:  # whole models: seconds each, and their data is far larger than any cache
        times = []
        while len(times) < 3 or (sum(times) < 400 and len(times) < 30):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            method()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
    low, median, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return {
        "median_s": statistics.median(times) / 1e3,
        "quartiles_s": [low / 1e3, high / 1e3],
        "samples": len(times),
        "peak_bytes": peak,
    }


def format_row(row: dict[str, Any]) -> str:
    ratio = "" if row["ratio_to_sacglam"] is None else f"{row['ratio_to_sacglam']:6.2f}x"
    floor = "" if row["floor_ratio"] is None else f"{row['floor_ratio']:7.2f}"
    peak = row["peak_bytes"] / 2**20
    return (
        f"{row['median_s'] * 1e3:10.3f} ms {ratio:>7} floor {floor:>7} {peak:9.0f} MiB  "
        f"{row['suite']}: {row['case']}: {row['method']}"
    )


def machine() -> dict[str, Any]:
    import torch

    query = "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm"
    try:
        smi = subprocess.check_output(["nvidia-smi", query, "--format=csv,noheader"], text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        smi = f"nvidia-smi failed: {error}"
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    from importlib import metadata

    versions = {}
    for name in ("torch", "triton", "transformers", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    properties = torch.cuda.get_device_properties(0)
    return {
        "machine": {
            "gpu": properties.name, "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory, "smi": smi.strip(), "host": platform.platform(),
        },
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda, **versions},
        "commit": commit.stdout.strip() or None,
    }  # fmt: skip


def measure_ceilings(ceilings: Any, session: Session) -> None:
    """Copy bandwidth (bytes read plus written) and bf16 matrix rate on random data."""
    import torch
    from triton.testing import do_bench

    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    copy_ms = do_bench(lambda: target.copy_(source), return_mode="median")
    ceilings.bytes_per_s = 2 * source.numel() * 4 / copy_ms * 1e3
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    ceilings.flops_per_s = 2 * 8192**3 / do_bench(lambda: a @ b, return_mode="median") * 1e3
    session.result["ceilings"] = vars(ceilings).copy()
    rates = ceilings.bytes_per_s / 1e12, ceilings.flops_per_s / 1e12
    print(f"copy {rates[0]:.2f} TB/s, bf16 product {rates[1]:.0f} TFLOP/s")


def run_checks(
    tasks: Sequence[tuple[Any, ...]], tiles: Sequence[Any], workers: int, session: Session
) -> None:
    """Every check in worker processes: kernels compile in parallel (and stay in Triton's cache on
    disk, those of `tiles` for the sweep), and a kernel that breaks its device context breaks no
    timing."""
    import device_checks as checks
    import device_layers as layers

    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = [(task, pool.submit(checks.run_task, *task)) for task in tasks]
        compiling: list[tuple[Any, Future[Any]]] = [
            (shape, pool.submit(layers.compile_tile, shape)) for shape in tiles
        ]
        for task, future in [*waiting, *compiling]:
            error = future.exception()
            if error is not None:
                session.fail(f"check {task}", "".join(traceback.format_exception(error)))
        for _, future in waiting:
            if future.exception() is None:
                session.check(*future.result())


def check_models(checks: Any, session: Session) -> None:
    """Tolerances of bfloat16: what its 8 bits leave of three random layers' gradients."""
    import torch

    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 1e-1)):
        checks.check_qwen(session.check, dtype, tolerance)
        checks.check_qwen(session.check, dtype, tolerance, shared=40)
        checks.check_t5(session.check, dtype, tolerance)


def build_extension() -> None:
    """`sacglam._C` in place, where the package is not installed."""
    installed = importlib.util.find_spec("sacglam") is not None
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    if not installed and not (ROOT / "python" / "sacglam" / f"_C{suffix}").exists():
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        importlib.invalidate_caches()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json")
    parser.add_argument("--minutes", type=float, default=8.5, help="start nothing new after this")
    parser.add_argument("--only", default="", help="comma-separated prefixes of section names")
    parser.add_argument("--workers", type=int, default=14, help="processes that check the kernels")
    parser.add_argument("--skip", default="", help="the same, of sections to leave out")
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)  # of a process of main's
    return parser.parse_args()


def main() -> int:
    options = parse()
    if options.deadline is not None:
        return run_sections(options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / ON_DISK).unlink(missing_ok=True)
    session = Session(options.out, time.time() + options.minutes * 60)
    session.result["command"] = " ".join(sys.argv)
    session.save()
    build_extension()  # before the package is imported
    command = [sys.executable, *sys.argv, "--deadline", str(session.deadline)]
    while True:
        status = subprocess.run(command, check=False).returncode
        session.load()
        sections = session.result["sections"]
        begun = [name for name, seconds in sections.items() if seconds is None]
        for name in begun:
            session.fail(name, f"its process ended with status {status}")
            sections[name] = 0.0
        session.save()
        if status != BROKEN and not begun:  # before or after all sections
            break
    return summarise(session) or status


def run_sections(options: argparse.Namespace) -> int:
    """All that have not been begun."""
    import torch

    if not torch.cuda.is_available():
        print("bench/device.py needs an NVIDIA GPU: torch.cuda.is_available() is False")
        return 2
    from device_workloads import Ceilings

    torch.backends.cuda.matmul.allow_tf32 = False
    session = Session(options.out, options.deadline)
    session.result |= machine()
    ceilings = Ceilings(**session.result.get("ceilings", {}))
    wanted = [p for p in options.only.split(",") if p]
    unwanted = [p for p in options.skip.split(",") if p]
    sweeps = not wanted or any(p.startswith("sweep") for p in wanted)
    sections = all_sections(session, ceilings, options.workers, sweeps=sweeps)
    for name, run in sections.items():
        if any(name.startswith(p) for p in unwanted):
            continue
        if not wanted or name == "ceilings" or any(name.startswith(p) for p in wanted):
            session.section(name, run)
    return 0


def all_sections(
    session: Session, ceilings: Any, workers: int, *, sweeps: bool = True
) -> dict[str, Callable[[], None]]:
    """By name, the most important first. On an H200 (bench/results) the checks take about 250 s,
    training 200 s, models 130 s, and the rest, most of which seldom changes, 250 s.

    sweeps: whether any will be run; their tiles, for an H200, are compiled beside the checks.
    """
    import device_checks as checks
    import device_graphs as graphs
    import device_kernels as kernels
    import device_layers as layers
    import device_model_checks as model_checks
    import device_models as models
    import device_profile as profiles
    import device_training as training
    from device_workloads import QWEN, T5

    record = session.record
    tiles = layers.TILES if sweeps else []
    found: dict[str, Callable[[], None]] = {
        "ceilings": lambda: measure_ceilings(ceilings, session),
        "check": lambda: run_checks(checks.tasks(), tiles, workers, session),
        "check models": lambda: check_models(model_checks, session),
        "check graphs": lambda: graphs.check_graphs(session.check),
    }
    for name in training.UPDATES:
        found[f"check updates, {name}"] = partial(training.check_updates, session.check, name)
    found["check training"] = lambda: training.check_training(session.check)
    for name in training.TRAINING:
        found[f"training, {name}"] = partial(training.time_training, record, name)
    for n in (256, 32):
        found[f"model Qwen {n}"] = partial(models.time_qwen, n, ceilings, record)
        found[f"model T5 {n}"] = partial(models.time_t5, n, ceilings, record)
    found["model Qwen 256, 100 shared"] = partial(
        models.time_qwen, 256, ceilings, record, shared=100
    )
    found["act"] = lambda: graphs.time_graphs(record)
    found["layer Qwen 256"] = lambda: layers.time_layer(
        QWEN, 4864, "silu", 256 * 198, ceilings, record
    )
    found["layer T5 256"] = lambda: layers.time_layer(
        T5, 2048, "gelu_tanh", 256 * 150, ceilings, record
    )
    found["head Qwen 256"] = lambda: kernels.time_head(QWEN, 256, ceilings, record)
    found["head Qwen 32"] = lambda: kernels.time_head(QWEN, 32, ceilings, record)
    found["head T5 256"] = lambda: kernels.time_head(T5, 256, ceilings, record)
    found["policy"] = lambda: kernels.time_policy(256, ceilings, record)
    for n in (256, 32):
        for prefix in (0, 100):
            found[f"attention Qwen {n}, prefix {prefix}"] = partial(
                kernels.time_forest, QWEN, n, ceilings, record, prefix=prefix, flex=prefix == 0
            )
        found[f"attention T5 {n}"] = partial(kernels.time_t5, T5, n, ceilings, record)
    found["attention long tries"] = partial(
        kernels.time_forest, QWEN, 4, ceilings, record, prefix=0, flex=True, candidates=400,
        length=60,
    )  # fmt: skip
    for n in (128, 32):
        found[f"profile {n}"] = lambda n=n: session.result.setdefault("profiles", {}).update(
            profiles.profile_models(n)
        )
    found["sweep layers"] = lambda: layers.sweep(256 * 198, record)
    found["sweep 256"] = lambda: kernels.sweep(256, record)
    return found


def summarise(session: Session) -> int:
    """The short table, last; full numbers are in results.json."""
    result = session.result
    wrong = [c for c in result["checks"] if not c["ok"]]
    print(f"\n{len(result['checks']) - len(wrong)} of {len(result['checks'])} checks passed")
    for check in wrong:
        print(f"  WRONG {check['suite']}: {check['case']}: {check['errors']}")
    for failure in result["failures"]:
        print(f"  FAILED {failure['where']}: {failure['error'].strip().splitlines()[-1][:160]}")
    best: dict[str, dict[str, Any]] = {}
    for row in result["rows"]:
        if row["suite"] == "sweep" and row["method"].startswith("("):
            held = best.setdefault(row["case"], row)
            if row["median_s"] < held["median_s"]:
                best[row["case"]] = row
    for case, row in best.items():
        print(f"{row['median_s'] * 1e3:10.3f} ms  best of sweep: {case}: {row['method']}")
    for row in result["rows"]:
        if row["suite"] != "sweep":
            print(format_row(row))
    session.save()
    return 1 if wrong or result["failures"] else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    raise SystemExit(main())
