"""The convention of the benchmarks: what each one records, how methods are timed side by side, and
the quick mode. README.md beside this file shows it in use."""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

OURS = "sacglam"
Method = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Effort:
    """How long to measure. Seconds are per case, over all its methods together."""

    budget_s: float
    min_rounds: int
    max_rounds: int
    min_sample_s: float  # one timed sample loops over its method until it takes this long
    suite_s: float  # cases that would start later than this are skipped


FULL = Effort(budget_s=4.0, min_rounds=7, max_rounds=200, min_sample_s=1e-3, suite_s=float("inf"))
QUICK = Effort(budget_s=0.6, min_rounds=3, max_rounds=15, min_sample_s=2e-4, suite_s=40.0)


@dataclass(frozen=True)
class Interleaved:
    """Seconds per call of each method, round by round; position r of every list is round r."""

    seconds: dict[str, list[float]]

    @property
    def median_s(self) -> dict[str, float]:
        """Median seconds per call of each method."""
        return {name: statistics.median(times) for name, times in self.seconds.items()}

    def ratios(self, base: str = OURS) -> dict[str, float]:
        """Median over rounds of (time of the method / time of `base` in the same round): above 1
        means slower than `base`. Pairing cancels what slows a whole round down, such as a
        neighbour on the machine or a lower clock."""
        return {
            name: statistics.median(t / b for t, b in zip(times, self.seconds[base], strict=True))
            for name, times in self.seconds.items()
        }


def interleave(
    methods: Mapping[str, Method],
    rounds: int | None = None,
    *,
    setup: Mapping[str, Method] | None = None,
    effort: Effort = FULL,
    clock: Clock = time.perf_counter,
) -> Interleaved:
    """Time `methods` alternately in one process, so that all of them meet the same machine.

    Every method runs once untimed first, which warms caches and tells how many calls make one
    sample. The order rotates from round to round: no method is always the one that follows a
    cache-hungry neighbour. `setup[name]`, when given, runs untimed before each sample of that
    method, which then is a single call. `rounds=None` fills the effort's budget. `clock` may be
    `time.thread_time`, where methods work in this thread alone: on a machine that others use, the
    wall time of a call that is longer than a slice of the scheduler holds their work as well.
    """
    if not methods:
        raise ValueError("interleave needs at least one method to time, got none")
    calls: dict[str, int] = {}
    round_s = 0.0
    for name, method in methods.items():
        once_s = min(_sample(method, 1, setup, name, clock) for _ in range(2))
        looped = setup is None or name not in setup
        calls[name] = max(1, round(effort.min_sample_s / max(once_s, 1e-9))) if looped else 1
        round_s += once_s * calls[name]
    if rounds is None:
        rounds = int(effort.budget_s / max(round_s, 1e-9))
        rounds = min(max(rounds, effort.min_rounds), effort.max_rounds)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    order = list(methods)
    gc.collect()
    for r in range(rounds):
        turn = r % len(order)
        for name in order[turn:] + order[:turn]:
            seconds[name].append(_sample(methods[name], calls[name], setup, name, clock))
    return Interleaved(seconds)


def _sample(
    method: Method, calls: int, setup: Mapping[str, Method] | None, name: str, clock: Clock
) -> float:
    if setup is not None and name in setup:
        setup[name]()
    loop = range(calls)
    start = clock()
    for _ in loop:
        method()
    return (clock() - start) / calls


@dataclass(frozen=True)
class Bracketed:
    """Seconds per call of one method, and of the slower one of the floor's two samples around."""

    seconds: list[float]
    floor: list[float]

    @property
    def at_full_speed(self) -> list[float]:
        """Of the rounds whose floor took at most a tenth more than the fastest one."""
        slowest = 1.1 * min(self.floor)
        return [s for s, floor in zip(self.seconds, self.floor, strict=True) if floor <= slowest]


def bracket(
    method: Method, floor: Method, *, effort: Effort = FULL, clock: Clock = time.perf_counter
) -> Bracketed:
    """Time one method in a row of long samples, its floor shortly before and after each.

    A virtual machine can run at half its speed for seconds, when its neighbours work. The floor
    tells when; the method itself has no say in which rounds count. Long samples, so that it finds
    the caches as its own calls left them.
    """

    def sample(timed: Method, times: int) -> float:
        calls = 0
        start = clock()
        while clock() - start < times * effort.min_sample_s or calls == 0:
            for _ in range(20):
                timed()
            calls += 20
        return (clock() - start) / calls

    sample(method, 80)
    before = sample(floor, 8)
    seconds, floors = [], []
    end = time.monotonic() + 5 * effort.budget_s
    while time.monotonic() < end or len(seconds) < effort.min_rounds:
        seconds.append(sample(method, 80))
        after = sample(floor, 8)
        floors.append(max(before, after))
        before = after
    return Bracketed(seconds, floors)


def peak_rss_bytes(method: Method) -> int | None:
    """Bytes by which the process grew at most while `method` ran once, or None where the system
    cannot tell. Call it before timing: what was freed before is given back to the system."""
    status = Path("/proc/self/status")
    _give_back_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark (proc(5))
        before = _status_bytes(status, "VmRSS")
        method()
        return max(0, _status_bytes(status, "VmHWM") - before)
    except OSError:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        method()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        unit = 1 if sys.platform == "darwin" else 1024
        # Below the high-water mark of the process nothing can be known.
        return (after - before) * unit if after > before else None


def _give_back_memory() -> None:
    """So that what is taken next is not hidden by garbage that goes meanwhile, nor by what the
    allocator (glibc's) has at hand."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _status_bytes(status: Path, field: str) -> int:
    for line in status.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in {status}")


class ReplayClock:
    """A timer that shows pytest-benchmark samples that were measured here, so that its own
    table, its JSON and its comparisons hold those and nothing is measured twice."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, samples: Iterator[float]) -> None:
        self.now = next(samples)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        default=os.environ.get("SACGLAM_BENCH_QUICK", "0") not in ("", "0"),
        help="few rounds, small cases: a suite ends within 60 s (also: SACGLAM_BENCH_QUICK=1)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("bench/ needs pytest-benchmark: pip install 'sacglam[bench]'")
    # A shell starts background jobs with Ctrl-C ignored; the runner stops a late suite with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    effort = FULL
    if config.getoption("--quick"):
        effort = QUICK
        # tryfirst: pytest-benchmark reads its options in its own pytest_configure.
        config.option.benchmark_max_time = min(float(config.option.benchmark_max_time), 0.3)
        config.option.benchmark_min_rounds = min(config.option.benchmark_min_rounds, 3)
    # With nothing measured every case is wanted: that run asks whether the suites still work.
    limit = float("inf") if config.option.benchmark_disable else effort.suite_s
    config.stash[_DEADLINE] = time.monotonic() + limit


_DEADLINE = pytest.StashKey[float]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"compare", "steady"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.benchmark(timer=ReplayClock()))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.monotonic() > item.config.stash[_DEADLINE]:
        pytest.skip("quick mode: the suite's time is used up; run it without --quick")


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Record the version of every distribution that was imported: rivals are named by theirs."""
    by_module = metadata.packages_distributions()
    loaded = {name.partition(".")[0] for name in sys.modules}
    names = {dist for module in loaded for dist in by_module.get(module, ())}
    output_json["versions"] = {name: metadata.version(name) for name in sorted(names)}


@pytest.fixture(scope="session")
def quick(pytestconfig: pytest.Config) -> bool:
    """True in quick mode: use small sizes."""
    return bool(pytestconfig.getoption("--quick"))


@pytest.fixture(scope="session")
def effort(quick: bool) -> Effort:
    """How long to measure."""
    return QUICK if quick else FULL


@pytest.fixture(name="interleave", scope="session")
def interleave_fixture(effort: Effort) -> Callable[..., Interleaved]:
    """`interleave(methods, rounds=None, setup=None) -> Interleaved`, at this session's effort."""

    def run(
        methods: Mapping[str, Method],
        rounds: int | None = None,
        *,
        setup: Mapping[str, Method] | None = None,
    ) -> Interleaved:
        return interleave(methods, rounds, setup=setup, effort=effort)

    return run


@pytest.fixture(name="peak_bytes", scope="session")
def peak_bytes_fixture() -> Callable[[Method], int | None]:
    """`peak_bytes(method) -> int | None`: host memory; on a GPU use torch's own counter."""
    return peak_rss_bytes


@pytest.fixture
def compare(
    request: pytest.FixtureRequest, benchmark: Any, effort: Effort
) -> Callable[..., Interleaved | None]:
    """Time our method and its rivals alternately and record a row for each: see `README.md`.

        compare(case, methods, *, floor=None, peak_bytes=None, flops=None, floor_flops=None,
                rounds=None, setup=None, clock=time.perf_counter)

    `methods` maps names to calls without arguments and must hold "sacglam". `floor` is what no
    implementation can beat: seconds, or a call that is timed beside the others (and gets no row).
    `peak_bytes` is a number for our method, or one per method. `flops` holds the operations that
    each method executes, `floor_flops` those that none can do without. Returns None where
    benchmarks are disabled (`--benchmark-disable`: every method then runs once, unmeasured).
    """

    def run(
        case: str,
        methods: Mapping[str, Method],
        *,
        floor: float | Method | None = None,
        peak_bytes: int | Mapping[str, int | None] | None = None,
        flops: Mapping[str, int] | None = None,
        floor_flops: int | None = None,
        rounds: int | None = None,
        setup: Mapping[str, Method] | None = None,
        clock: Clock = time.perf_counter,
    ) -> Interleaved | None:
        if OURS not in methods:
            raise ValueError(f"case {case!r} needs a method named {OURS!r}, got {list(methods)}")
        if "floor" in methods:
            raise ValueError(f"case {case!r}: give the floor as floor=, not as a method")
        timed = dict(methods)
        if callable(floor):
            timed["floor"] = floor
        if benchmark.disabled:
            for name, method in timed.items():
                _sample(method, 1, setup, name, clock)
            benchmark.pedantic(lambda: None)
            return None
        result = interleave(timed, rounds, setup=setup, effort=effort, clock=clock)
        median_s, ratios = result.median_s, result.ratios()
        floor_s = median_s["floor"] if callable(floor) else floor
        peaks = peak_bytes if isinstance(peak_bytes, Mapping) else {OURS: peak_bytes}
        flops = flops or {}
        benchmark.extra_info.update(
            case=case,
            method=OURS,
            floor_s=floor_s,
            floor_flops=floor_flops,
            peak_bytes=peaks.get(OURS),
            flops=flops.get(OURS),
            rivals={
                name: {
                    "median_s": median_s[name],
                    "ratio_to_sacglam": ratios[name],
                    "peak_bytes": peaks.get(name),
                    "flops": flops.get(name),
                }
                for name in methods
                if name != OURS
            },
        )
        _show(request, benchmark, result.seconds[OURS])
        return result

    return run


@pytest.fixture
def steady(
    request: pytest.FixtureRequest, benchmark: Any, effort: Effort
) -> Callable[..., Bracketed | None]:
    """Time our method alone, as it runs on the machine at its full speed: see `bracket`.

        steady(case, method, *, floor, clock=time.perf_counter)

    Its row has `full_speed_s` and `full_speed_share`, the share of the rounds that were such.
    """

    def run(
        case: str, method: Method, *, floor: Method, clock: Clock = time.perf_counter
    ) -> Bracketed | None:
        if benchmark.disabled:
            method()
            benchmark.pedantic(floor)
            return None
        result = bracket(method, floor, effort=effort, clock=clock)
        full = result.at_full_speed
        benchmark.extra_info.update(
            case=case,
            method=OURS,
            floor_s=statistics.median(result.floor),
            peak_bytes=None,
            full_speed_s=statistics.median(full),
            full_speed_share=len(full) / len(result.seconds),
        )
        _show(request, benchmark, result.seconds)
        return result

    return run


def _show(request: pytest.FixtureRequest, benchmark: Any, seconds: list[float]) -> None:
    timer: ReplayClock = request.node.get_closest_marker("benchmark").kwargs["timer"]
    samples = itertools.accumulate(seconds, initial=timer())
    next(samples)
    benchmark.pedantic(timer.advance, args=(samples,), rounds=len(seconds))
