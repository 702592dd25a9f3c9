"""With a clock of our own: how long each step takes is drawn from known distributions, never measured."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsdiag.benching.journal.record import Timing
from mpsdiag.benching.run.rounds import StopRule, baseline_of, baselines, rotated, settled, wanted
from mpsdiag.scenario.scenario import Scenario


def timings(*rounds):
    return {
        number: Timing(device="cpu", warmup=0, train_step=list(samples), eval_step=list(samples))
        for number, samples in enumerate(rounds, start=1)
    }


@given(st.integers(1, 40), st.integers(1, 30))
def test_every_round_has_every_cell_once(count, number):
    assert sorted(rotated(range(count), number)) == list(range(count))


@pytest.mark.parametrize("count", [2, 3, 18, 150])
def test_over_the_rounds_every_cell_is_early_and_late(count):
    rounds = [rotated(range(count), number) for number in range(1, 9)]
    places = np.array([[order.index(item) for order in rounds] for item in range(count)]) / (count - 1)
    assert np.all(np.abs(places.mean(axis=1) - 0.5) < 0.26)


def test_a_linear_drift_cancels_between_neighbours():
    clock = 0.0
    took = {item: [] for item in range(10)}
    for number in range(1, 9):
        for item in rotated(range(10), number):
            clock += 1.0
            took[item].append(1.0 + 0.01 * clock)  # throttling: every step is slower than the one before
    means = [np.mean(samples) for samples in took.values()]
    fixed_order = np.mean([1.0 + 0.01 * (10 * number + 9) for number in range(8)]) - np.mean(
        [1.0 + 0.01 * (10 * number) for number in range(8)]
    )
    assert max(abs(a - b) for a, b in itertools.pairwise(means)) < fixed_order / 2


def test_the_baseline_is_the_standard_trainer_with_the_baselines_attention():
    cells = [Scenario(attn_implementation=a, trainer=t) for a in ("sdpa", "eager") for t in ("standard", "mps_safe")]
    assert baseline_of(Scenario(attn_implementation="eager", trainer="mps_safe"), cells, "sdpa") == Scenario()
    without = [cell for cell in cells if cell.trainer != "standard"]
    assert baseline_of(without[1], without, "sdpa") == without[0]
    assert baseline_of(Scenario(attn_implementation="eager", padding_side="right"), cells, "sdpa") is None


def test_settled_by_the_width_of_the_interval():
    generator = np.random.default_rng(1)
    tight = timings(*(generator.normal(1.0, 0.002, 8) for _ in range(3)))
    loose = timings(*(generator.normal(1.0, 0.2, 8) for _ in range(3)))
    assert settled(tight, tight, 0.03)
    assert not settled(loose, tight, 0.03)
    assert settled(loose, tight, 10.0)
    assert not settled(timings(), tight, 0.03)


def test_drift_between_rounds_is_not_mistaken_for_precision():
    # Within a round nothing moves; from round to round the ratio does. Pooling would call this precise.
    base = timings([1.0] * 20, [1.0] * 20, [1.0] * 20)
    ours = timings([1.0] * 20, [1.1] * 20, [1.2] * 20)
    assert not settled(ours, base, 0.03)


def simulate(rule, spread, seed=0):
    """Run the rule against cells whose steps take `spread` times noise; rounds that each cell got."""
    generator = np.random.default_rng(seed)
    cells = [Scenario(attn_implementation=one) for one in spread]
    partners = baselines(cells, "sdpa")
    history = {cell: {} for cell in cells}
    number = 1
    while order := wanted(number, history, partners, rule):
        for cell in order:
            samples = generator.lognormal(0.0, spread[cell.attn_implementation], 10).tolist()  # durations are above 0
            history[cell][number] = Timing(device="cpu", warmup=0, eval_step=samples)
        number += 1
    return {cell.attn_implementation: len(rounds) for cell, rounds in history.items()}


def test_precise_cells_stop_early_and_noisy_ones_go_on_with_their_baseline():
    rounds = simulate(StopRule(rounds=3, most=9, precision=0.03), {"sdpa": 0.002, "eager": 0.002, "safe_sdpa": 0.3})
    assert rounds == {"sdpa": 9, "eager": 3, "safe_sdpa": 9}


def test_all_precise_stops_at_the_least_number_of_rounds():
    assert simulate(StopRule(3, 9, 0.03), {"sdpa": 0.001, "eager": 0.001}) == {"sdpa": 3, "eager": 3}


def test_more_rounds_narrow_the_interval_until_it_is_enough():
    rounds = simulate(StopRule(rounds=2, most=60, precision=0.05), {"sdpa": 0.05, "eager": 0.05})
    assert 2 < rounds["eager"] < 60
    assert rounds["sdpa"] == rounds["eager"]


@pytest.mark.parametrize("rule", [StopRule(0, 5), StopRule(2, 2)])
def test_never_more_than_the_most(rule):
    assert simulate(rule, {"sdpa": 1.0, "eager": 1.0})["eager"] == (0 if rule.rounds == 0 else rule.most)


def test_a_cell_without_a_baseline_gets_the_least_number():
    cells = [Scenario(attn_implementation="eager")]
    history = {cells[0]: timings([1.0, 2.0], [1.0, 3.0])}
    assert wanted(3, history, baselines(cells, "sdpa"), StopRule(2, 9)) == []


def test_the_same_history_gives_the_same_decision():
    cells = [Scenario(), Scenario(attn_implementation="eager")]
    base, ours = timings([1.0, 1.1], [1.0, 1.1]), timings([2.0, 1.1], [1.0, 1.9])
    rule = StopRule(2, 5)
    before = wanted(3, {cells[0]: base, cells[1]: ours}, baselines(cells, "sdpa"), rule)
    # Half of round 3 is in the journal when the bench is killed: the decision about round 3 is as before.
    half = wanted(3, {cells[0]: {**base, 3: base[1]}, cells[1]: ours}, baselines(cells, "sdpa"), rule)
    assert before == half != []
