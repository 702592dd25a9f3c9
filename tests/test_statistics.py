"""Known distributions give known intervals."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from mpsdiag.statistics import (
    Interval,
    bootstrap_interval,
    iqr_ratio,
    mad,
    mann_whitney,
    median,
    ratio_interval_of_rounds,
)

DURATIONS = st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=20)


def test_medians_by_hand():
    samples = [1.0, 2.0, 4.0, 8.0, 100.0]
    assert median(samples) == 4.0
    assert mad(samples) == 3.0  # deviations 3 2 0 4 96
    assert iqr_ratio(samples) == (8.0 - 2.0) / 4.0
    assert math.isnan(median([]))
    assert math.isnan(mad([]))
    assert iqr_ratio([5.0]) == 0.0


def test_the_interval_of_a_normal_median_is_as_wide_as_theory_says():
    samples = np.random.default_rng(3).normal(10.0, 1.0, 4000)
    theory = 2 * 1.96 * math.sqrt(math.pi / 2) / math.sqrt(len(samples))  # standard error of a normal median
    assert bootstrap_interval(samples).width == pytest.approx(theory, rel=0.2)


def coverage(interval, truth, trials=150):
    hits = [truth in interval(np.random.default_rng(seed)) for seed in range(trials)]
    return sum(hits) / trials


def test_the_interval_holds_the_true_median_about_95_times_in_100():
    assert coverage(lambda g: bootstrap_interval(g.normal(10.0, 1.0, 25)), 10.0) >= 0.9


def test_the_interval_of_a_skewed_distribution_does_too():
    truth = math.log(2)  # of an exponential
    assert coverage(lambda g: bootstrap_interval(g.exponential(1.0, 30)), truth) >= 0.88


def test_the_interval_of_a_ratio_holds_the_true_ratio():
    def interval(g):
        return ratio_interval_of_rounds([g.normal(1.2, 0.1, 25)], [g.normal(1.0, 0.1, 25)])

    assert coverage(interval, 1.2) >= 0.9


def test_rounds_that_differ_widen_the_interval_where_pooling_would_not():
    def rounds(g):
        offsets = g.normal(1.0, 0.1, 8)
        ours = [g.normal(1.2 * offset, 0.001, 10) for offset in g.normal(1.0, 0.1, 8)]
        return [list(one) for one in ours], [list(g.normal(offset, 0.001, 10)) for offset in offsets]

    honest = coverage(lambda g: ratio_interval_of_rounds(*rounds(g)), 1.2, trials=100)
    pooled = coverage(
        lambda g: ratio_interval_of_rounds(*([np.concatenate(side)] for side in rounds(g))), 1.2, trials=40
    )
    assert honest >= 0.85 > pooled


def test_drift_that_hits_both_sides_of_a_round_alike_cancels():
    drift = [1.0, 1.5, 2.0, 3.0]
    ours = [[1.2 * d, 1.2 * d] for d in drift]
    base = [[d, d] for d in drift]
    found = ratio_interval_of_rounds(ours, base)
    assert (found.low, found.high) == (pytest.approx(1.2), pytest.approx(1.2))


@pytest.mark.parametrize(
    ("ours", "base"), [([], []), ([[]], [[]]), ([[1.0]], [[1.0], [1.0]]), ([[1.0], []], [[1.0], [1.0]])]
)
def test_no_interval_from_nothing(ours, base):
    assert ratio_interval_of_rounds(ours, base) is None


def test_a_single_round_is_resampled_as_scipy_does_it():
    generator = np.random.default_rng(5)
    ours, base = generator.normal(1.2, 0.1, 40), generator.normal(1.0, 0.1, 40)

    def statistic(one, other, axis):
        return np.median(one, axis=axis) / np.median(other, axis=axis)

    stock = bootstrap((ours, base), statistic, method="percentile", n_resamples=20_000).confidence_interval
    found = ratio_interval_of_rounds([ours], [base])
    assert (found.low, found.high) == (pytest.approx(stock.low, rel=0.01), pytest.approx(stock.high, rel=0.01))


def test_an_interval_needs_two_samples_and_a_baseline_that_takes_time():
    ours, base = [1.0, 1.1, 1.2], [1.0, 1.05, 0.95]
    assert ratio_interval_of_rounds([[1.0]], [base]) is None
    assert ratio_interval_of_rounds([ours], [[0.0, 0.0]]) is None


def test_mann_whitney_by_hand():
    # All of one side below the other, three each: 2 of the 20 orders are as extreme (Mann and Whitney 1947).
    assert mann_whitney([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]) == pytest.approx(0.1)
    assert mann_whitney([], [1.0]) is None


@example([570.6549919874607, 570.6549919874607])
@given(DURATIONS)
def test_an_interval_lies_within_the_samples_and_is_the_same_each_time(samples):
    found = bootstrap_interval(samples)
    assert min(samples) * (1 - 1e-12) <= found.low <= found.high <= max(samples) * (1 + 1e-12)
    assert found == bootstrap_interval(samples)


def test_an_interval_has_both_its_ends():
    assert 1.0 in Interval(1.0, 2.0)
    assert 2.0 in Interval(1.0, 2.0)
    assert 2.1 not in Interval(1.0, 2.0)


@pytest.mark.parametrize(
    "interval",
    [
        lambda ours, base: bootstrap_interval([o / b for o, b in zip(ours, base, strict=True)]),
        lambda ours, base: ratio_interval_of_rounds([ours[:4], ours[4:]], [base[:4], base[4:]]),
    ],
)
def test_the_ends_are_in_order_on_both_sides_of_the_ratio(interval):
    found = interval([1.8, 1.9, 2.0, 2.2, 1.7, 2.1, 2.3, 2.0], [0.9, 1.0, 1.1, 1.0, 0.9, 1.1, 1.0, 1.0])
    assert found.low < 2.0 < found.high
    assert found.width == found.high - found.low > 0
