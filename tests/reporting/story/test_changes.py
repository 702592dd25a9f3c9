from __future__ import annotations

import pytest

from mpsdiag.benching.journal.pooling import pool
from mpsdiag.reporting.story.changes import compare
from mpsdiag.reporting.story.ranking import Budget


@pytest.fixture
def changes(journal):
    found = compare(pool([journal("every_end")]), pool([journal("older")]), Budget())
    return {
        (row.cell.attn_implementation, row.cell.trainer, row.cell.padding_side, row.cell.dtype): row
        for row in found.rows
    }


def test_each_cell_is_told_by_what_became_of_it(changes):
    assert changes["sdpa", "standard", "left", "float32"].change == "newly_bad"
    assert changes["safe_sdpa", "standard", "left", "float32"].change == "newly_fixed"
    assert changes["eager", "standard", "left", "float32"].change == "improved"
    assert changes["eager", "standard", "right", "float32"].change == "worse"
    assert changes["sdpa", "standard", "right", "float32"].change == "same"
    assert changes["sdpa", "mps_safe", "left", "float32"].change == "only_new"
    assert changes["eager", "standard", "left", "bfloat16"].change == "only_old"


def test_no_ratio_is_given_where_either_side_is_not_right(changes):
    assert changes["sdpa", "standard", "left", "float32"].eval_ratio is None
    assert changes["safe_sdpa", "standard", "left", "float32"].eval_ratio is None


def test_alarms_come_first(stories):
    order = [row.change for row in stories["compared"].changes.rows]
    assert order[:4] == ["newly_bad", "newly_fixed", "worse", "improved"]


def test_environments_are_named_with_what_differs(stories):
    [pair] = stories["compared"].changes.pairs
    assert ("torch", "2.7.1", "2.8.0") in pair.differences
    assert ("system", "macOS 15.4", "macOS 15.5") in pair.differences


def test_the_same_results_are_the_same(journal):
    both = pool([journal("every_end")])
    found = compare(both, both, Budget())
    assert set(found.counts) <= {"same", "still_bad", "only_old"}


@pytest.mark.parametrize(("factor", "change"), [(1.02, "same"), (1.2, "worse"), (0.8, "improved")])
def test_a_change_must_leave_the_noise_band(record, journal_of, factor, change):
    samples = [1.0 + number / 1000 for number in range(20)]
    old = journal_of(record(), record(number=1, samples=samples))
    new = journal_of(record(), record(number=1, samples=[factor * one for one in samples]))
    [row] = compare(pool([new]), pool([old]), Budget()).rows
    assert row.change == change


def test_noise_is_no_change(record, journal_of):
    noisy = [1.0, 2.0, 0.5, 1.5, 0.7]
    new = journal_of(record(), record(number=1, samples=[1.1 * one for one in noisy]))
    [row] = compare(pool([new]), pool([journal_of(record(), record(number=1, samples=noisy))]), Budget()).rows
    assert row.change == "same"


def test_other_versions_are_the_same_cell(record, journal_of):
    [row] = compare(
        pool([journal_of(record(versions="2"), environment={"chip": "B"})]), pool([journal_of(record())]), Budget()
    ).rows
    assert row.change == "same"


def test_a_cell_that_was_not_run_again_is_not_newly_bad(record, journal_of):
    [row] = compare(pool([journal_of(record("interrupted"))]), pool([journal_of(record())]), Budget()).rows
    assert row.change == "only_old"
