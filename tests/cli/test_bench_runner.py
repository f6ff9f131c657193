"""`sacglam bench` on suites written here, and the convention of bench/conftest.py."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from sacglam.cli import bench
from sacglam.errors import ConfigError, MissingDependencyError

pytest.importorskip("pytest_benchmark")
CONFTEST = Path(__file__).resolve().parents[2] / "bench" / "conftest.py"
if not CONFTEST.is_file():
    pytest.skip("needs the checkout: bench/ is not installed", allow_module_level=True)

TOY = """
import time

def test_sum(compare, quick):
    numbers = list(range(200 if quick else 2000))
    calls = []

    def theirs():
        calls.append(1)
        time.sleep(0.002)

    result = compare(
        "sum", {"sacglam": lambda: time.sleep(0.0005), "sleeper": theirs},
        floor=0.00025, peak_bytes={"sacglam": 1000, "sleeper": 5000}, rounds=5,
        flops={"sacglam": 30, "sleeper": 80}, floor_flops=20,
    )
    if result is not None:
        assert len(calls) >= 5

def test_alone(steady):
    # sleep() never returns early: a bound on what is measured, on any machine
    steady("alone", lambda: time.sleep(0.0001), floor=lambda: time.sleep(0.00005))

def test_plain(benchmark):
    benchmark.extra_info.update(case="plain", method="sacglam", floor_s=1e-9)
    benchmark(sum, range(100))

def test_plain_rival(benchmark):
    benchmark.extra_info.update(case="plain", method="list")
    benchmark(lambda: sum(list(range(100)) * 20))
"""


@pytest.fixture
def suites(tmp_path: Path) -> Path:
    folder = tmp_path / "bench"
    folder.mkdir()
    shutil.copy(CONFTEST, folder / "conftest.py")
    return folder


@pytest.fixture(scope="module")
def convention() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sacglam_bench_conftest", CONFTEST)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(suites: Path, suite: str, json_path: Path | None = None) -> tuple[int, str]:
    out = io.StringIO()
    code = bench.run_bench(
        suite, True, str(json_path) if json_path else None, bench_dir=suites, stream=out
    )
    return code, out.getvalue()


def test_rows_hold_what_the_suite_measured(suites: Path, tmp_path: Path) -> None:
    (suites / "test_bench_toy.py").write_text(TOY)
    target = tmp_path / "out.json"
    code, shown = run(suites, "toy", target)
    assert code == 0
    result = json.loads(target.read_text())
    assert result["machine"]["cores"] >= 1
    assert {"python", "sacglam", "torch", "pytest-benchmark"} <= set(result["versions"])
    assert result["commit"] is None  # tmp_path is no checkout
    assert result["command"] == "sacglam bench toy --quick"
    rows = {(row["case"], row["method"]): row for row in result["rows"]}
    assert set(rows) == {
        ("sum", "sacglam"), ("sum", "sleeper"), ("alone", "sacglam"),
        ("plain", "sacglam"), ("plain", "list"),
    }  # fmt: skip
    keys = {
        "suite", "case", "method", "median_s", "ratio_to_sacglam", "floor_ratio", "peak_bytes",
        "flops", "flops_ratio", "full_speed_s", "full_speed_share",
    }  # fmt: skip
    assert all(set(row) == keys and row["suite"] == "toy" for row in rows.values())
    ours, theirs = rows["sum", "sacglam"], rows["sum", "sleeper"]
    # sleep() never returns early, so these bounds hold on any machine.
    assert ours["median_s"] >= 0.0005
    assert theirs["median_s"] >= 0.002
    assert ours["ratio_to_sacglam"] == 1.0
    assert theirs["ratio_to_sacglam"] > 0.0
    assert ours["floor_ratio"] == pytest.approx(ours["median_s"] / 0.00025)
    assert theirs["floor_ratio"] == pytest.approx(theirs["median_s"] / 0.00025)
    assert (ours["peak_bytes"], theirs["peak_bytes"]) == (1000, 5000)
    assert (ours["flops"], ours["flops_ratio"]) == (30, 1.5)
    assert (theirs["flops"], theirs["flops_ratio"]) == (80, 4.0)
    assert ours["full_speed_s"] is None
    alone = rows["alone", "sacglam"]
    assert alone["full_speed_s"] >= 0.0001
    assert 0.0 < alone["full_speed_share"] <= 1.0
    assert "full speed" in " ".join(shown.split())
    plain = rows["plain", "list"]
    expected = plain["median_s"] / rows["plain", "sacglam"]["median_s"]
    assert plain["ratio_to_sacglam"] == pytest.approx(expected)
    assert rows["plain", "sacglam"]["peak_bytes"] is None
    assert rows["plain", "sacglam"]["flops"] is None
    assert "sleeper" in shown
    assert str(target) in shown


def test_all_merges_the_suites_and_a_failure_keeps_the_rest(suites: Path, tmp_path: Path) -> None:
    (suites / "test_bench_good.py").write_text(
        "def test_ok(compare):\n    compare('c', {'sacglam': lambda: None}, rounds=2)\n"
    )
    (suites / "test_bench_bad.py").write_text(
        "def test_ok(compare):\n    compare('c', {'sacglam': lambda: None}, rounds=2)\n"
        "def test_broken(compare):\n    compare('d', {'theirs': lambda: None})\n"
        "def test_unnamed(benchmark):\n    benchmark(lambda: None)\n"
    )
    target = tmp_path / "out.json"
    code, shown = run(suites, "all", target)
    assert code == 1
    assert "suite 'bad': a benchmark failed" in shown
    assert "test_unnamed sets no case and method" in shown
    rows = json.loads(target.read_text())["rows"]
    assert [(row["suite"], row["case"]) for row in rows] == [("bad", "c"), ("good", "c")]


def test_a_hanging_quick_suite_is_stopped_and_what_it_measured_kept(
    suites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_QUICK_LIMIT_S", 20.0)  # room to start on a busy machine
    (suites / "test_bench_slow.py").write_text(
        "import time\n"
        "def test_a(compare):\n    compare('fast', {'sacglam': lambda: None}, rounds=2)\n"
        "def test_b(compare):\n    time.sleep(600)\n"
    )
    code, shown = run(suites, "slow")
    assert code == 1
    assert "was stopped after 20 s" in shown
    assert "fast" in shown


def test_a_late_case_is_skipped_in_quick_mode(suites: Path) -> None:
    text = (suites / "conftest.py").read_text()
    assert "suite_s=40.0" in text
    (suites / "conftest.py").write_text(text.replace("suite_s=40.0", "suite_s=-1.0"))
    (suites / "test_bench_late.py").write_text(
        "def test_a(compare):\n    compare('late', {'sacglam': lambda: None})\n"
    )
    code, shown = run(suites, "late")
    assert (code, "nothing was measured" in shown) == (0, True)


def test_disabled_benchmarks_run_each_method_once(suites: Path) -> None:
    (suites / "test_bench_toy.py").write_text(TOY)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "--benchmark-disable",
         "-p", "no:cacheprovider", str(suites)],
        capture_output=True, text=True, cwd=suites.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_unknown_suite_names_near_ones(suites: Path) -> None:
    (suites / "test_bench_replay.py").write_text("")
    with pytest.raises(ConfigError, match=r"'repaly'; near: replay\. Suites: replay, or all"):
        run(suites, "repaly")


def test_json_path_is_refused_before_anything_runs(suites: Path, tmp_path: Path) -> None:
    (suites / "test_bench_toy.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ConfigError, match="missing or not writable"):
        run(suites, "toy", tmp_path / "no" / "such" / "out.json")
    with pytest.raises(ConfigError, match="a folder"):
        run(suites, "toy", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_without_a_checkout_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sacglam

    site = tmp_path / "lib" / "site-packages" / "sacglam"
    site.mkdir(parents=True)
    monkeypatch.setattr(sacglam, "__file__", str(site / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingDependencyError, match="clone the repository"):
        bench.run_bench("all")
    # Somebody else's bench/ in the working directory is not ours.
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "conftest.py").write_text("")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\n')
    with pytest.raises(MissingDependencyError, match="clone the repository"):
        bench.run_bench("all")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "sacglam"\n')
    assert bench.find_bench_dir() == tmp_path / "bench"


def test_the_commit_is_that_of_the_checkout(suites: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        done = subprocess.run(
            ["git", *identity, *arguments],
            cwd=suites.parent, check=True, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.strip()

    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    document = bench._document([], {}, "all", False, suites)
    assert document["commit"] == git("rev-parse", "HEAD")
    assert document["dirty"] is False
    (suites / "conftest.py").write_text("")
    assert bench._document([], {}, "all", False, suites)["dirty"] is True


def test_a_method_measured_twice_is_reported() -> None:
    entry = {
        "fullname": "f", "extra_info": {"case": "c", "method": "sacglam"}, "stats": {"median": 1.0},
    }  # fmt: skip
    rows, problems = bench.rows_of("s", {"benchmarks": [entry, entry]})
    assert len(rows) == 1
    assert problems == ["case 'c' of suite 's' measures 'sacglam' twice"]


def test_a_case_without_our_method_has_no_ratio() -> None:
    entry = {"extra_info": {"case": "c", "method": "other"}, "stats": {"median": 2.0}}
    rows, problems = bench.rows_of("s", {"benchmarks": [entry]})
    assert problems == []
    assert rows[0]["ratio_to_sacglam"] is None
    assert rows[0]["floor_ratio"] is None


def test_interleave_alternates_and_rotates(convention: ModuleType) -> None:
    order: list[str] = []
    result = convention.interleave(
        {name: lambda name=name: order.append(name) for name in "abc"}, 3,
        setup={name: lambda: None for name in "abc"},  # a setup makes every sample one call
    )  # fmt: skip
    measured = order[6:]  # two warm-up calls each
    assert measured == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert {name: len(times) for name, times in result.seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_interleave_runs_the_setup_before_each_sample(convention: ModuleType) -> None:
    log: list[str] = []
    convention.interleave(
        {"sacglam": lambda: log.append("run")}, 2, setup={"sacglam": lambda: log.append("set")}
    )
    assert log == ["set", "run"] * 4


def test_ratios_pair_the_rounds(convention: ModuleType) -> None:
    # A machine that becomes ten times slower half-way: the ratio of medians would be 1.1 / 10.
    seconds = {"sacglam": [1.0, 10.0, 10.0], "other": [2.0, 20.0, 1.1]}
    result = convention.Interleaved(seconds)
    assert result.ratios()["other"] == 2.0
    assert result.ratios()["sacglam"] == 1.0
    assert result.median_s == {"sacglam": 10.0, "other": 2.0}


def test_interleave_fills_its_budget_within_bounds(convention: ModuleType) -> None:
    effort = convention.Effort(
        budget_s=1e-9, min_rounds=4, max_rounds=6, min_sample_s=0.0, suite_s=1.0
    )
    slow = convention.interleave({"sacglam": lambda: None}, effort=effort)
    assert len(slow.seconds["sacglam"]) == 4
    effort = convention.Effort(
        budget_s=1e9, min_rounds=4, max_rounds=6, min_sample_s=0.0, suite_s=1.0
    )
    fast = convention.interleave({"sacglam": lambda: None}, effort=effort)
    assert len(fast.seconds["sacglam"]) == 6


def test_bracket_counts_what_ran_between_two_fast_floors(convention: ModuleType) -> None:
    """A machine that turns to half its speed and back, at times that are no multiple of a round."""
    now = 0.0

    def work(seconds: float) -> None:
        nonlocal now
        now += seconds * (1.0 if now % 700.0 < 350.0 else 2.0)

    effort = convention.Effort(
        budget_s=0.0, min_rounds=60, max_rounds=60, min_sample_s=0.5, suite_s=1.0
    )
    result = convention.bracket(
        lambda: work(1.0), lambda: work(0.2), effort=effort, clock=lambda: now
    )
    assert len(result.seconds) == len(result.floor) == 60
    full = result.at_full_speed
    assert 10 <= len(full) <= 30
    assert sorted(full)[len(full) // 2] == pytest.approx(1.0)
    assert max(full) < 1.6  # one that holds a whole slow phase between two fast ones is rare


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's resettable peak"
)
def test_peak_bytes_sees_memory_that_is_freed_again(convention: ModuleType) -> None:
    n = 64 * 2**20

    def touch() -> None:
        block = bytearray(n)
        block[::4096] = b"x" * len(block[::4096])

    peak = convention.peak_rss_bytes(touch)
    assert 0.9 * n <= peak <= 1.5 * n

    # What was freed before, but is with the allocator still, hides nothing of it.
    blocks = [b"x" * 100_000 for _ in range(2 * n // 100_000)]
    top = b"y" * 100_000  # above them: the allocator keeps what is freed below
    del blocks
    again = convention.peak_rss_bytes(touch)
    del top
    assert 0.9 * n <= again <= 1.5 * n
