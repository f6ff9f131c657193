"""Interquartile means and bootstrap intervals against plain Python, and against what must hold."""

from __future__ import annotations

import random
import statistics

import numpy as np
import pytest

from bench.learning.intervals import bootstrap_interval, interquartile_mean


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1.0], 1.0),
        ([3.0, 1.0, 2.0], 2.0),
        ([0.0, 1.0, 2.0, 100.0], 1.5),
        ([5.0, 4.0, 3.0, 2.0, -100.0], 3.0),
        ([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 4.5),
    ],
)
def test_the_interquartile_mean(scores: list[float], expected: float):
    assert interquartile_mean([[s] for s in scores]) == pytest.approx(expected)


def test_runs_and_tasks_are_taken_together_and_leading_axes_apart():
    table = np.array([[[0.0, 4.0], [1.0, 100.0]], [[7.0, 7.0], [7.0, 7.0]]])  # [2, runs, tasks]
    assert interquartile_mean(table).tolist() == [2.5, 7.0]
    low, high = bootstrap_interval(table, samples=200)
    assert low.shape == high.shape == (2,)
    assert (low[1], high[1]) == (7.0, 7.0)


def test_the_interval_is_that_of_a_plain_bootstrap():
    """The same by a loop over random.choices: ends agree within the noise of 4000 samples."""
    rng = random.Random(0)
    tasks = [[rng.gauss(0.5, 0.2) for _ in range(7)], [rng.gauss(0.2, 0.05) for _ in range(7)]]
    means = []
    for _ in range(4000):
        drawn = sorted(x for runs in tasks for x in rng.choices(runs, k=7))  # each task apart
        means.append(statistics.fmean(drawn[3:-3]))  # 14 // 4 at each end
    cuts = statistics.quantiles(means, n=40)
    low, high = bootstrap_interval(np.array(tasks).T, samples=4000)
    assert low == pytest.approx(cuts[0], abs=0.01)
    assert high == pytest.approx(cuts[-1], abs=0.01)
    assert low < interquartile_mean(np.array(tasks).T) < high


def test_intervals_of_95_percent_hold_the_truth_about_so_often():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        low, high = bootstrap_interval(rng.normal(size=(20, 1)), samples=300)
        held += bool(low <= 0.0 <= high)
    assert 0.85 <= held / 200 <= 0.99


def test_strata_do_not_mix():
    """Every run is the same within its task: however runs are drawn, nothing changes."""
    low, high = bootstrap_interval([[0.0, 1.0]] * 5, samples=100)
    assert low == high == 0.5
