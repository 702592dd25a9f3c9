from __future__ import annotations

import pytest

from mpsdiag.benching.journal.pooling import pool


def test_rounds_of_a_cell_pool_their_raw_samples(record, journal_of):
    found = pool([journal_of(record(), record(number=1, samples=(1.0, 2.0)), record(number=2, samples=(3.0,)))])
    [one] = found.results
    assert one.eval_step == [1.0, 2.0, 3.0]
    assert one.rounds == 3
    assert one.status == "ok"
    assert not found.notes


def test_the_same_round_twice_counts_the_newest_whatever_the_order_and_says_so(record, journal_of):
    old = record(number=1, samples=(9.0,), started="2026-01-01T00:00:00Z")
    new = record(number=1, samples=(1.0,), started="2026-02-01T00:00:00Z")
    for order in ((old, new), (new, old)):
        found = pool([journal_of(record(), order[0]), journal_of(order[1])])
        assert found.results[0].eval_step == [1.0]
        assert found.notes == ("1 round was recorded more than once; the newest counts.",)


def test_different_environments_are_never_put_together(record, journal_of):
    one = journal_of(record(), record(number=1, samples=(1.0,)), environment={"chip": "A"})
    other = journal_of(record(), record(number=1, samples=(5.0,)), environment={"chip": "B"})
    found = pool([one, other])
    assert [(result.place.letter, result.eval_step) for result in found.results] == [("A", [1.0]), ("B", [5.0])]
    assert [place.label for place, _ in found.by_place()] == ["A", "B"]


def test_what_differs_between_two_askings_on_one_machine_does_not_tell_machines_apart(record, journal_of):
    one = journal_of(record(), environment={"chip": "A", "mps_usable": None})
    other = journal_of(record(number=1, samples=(1.0,)), environment={"chip": "A", "mps_usable": True})
    assert len(pool([one, other]).places) == 1


def test_an_environment_in_the_record_goes_before_that_of_the_header(record, journal_of):
    found = pool([journal_of(record(environment={"chip": "mine"}), environment={"chip": "header's"})])
    assert found.places[0].label == "mine"


@pytest.mark.parametrize("status", ["crash", "oom", "timeout", "error"])
def test_a_timing_that_went_well_does_not_make_an_unfinished_verdict_right(record, journal_of, status):
    [one] = pool([journal_of(record(status), record(number=1, samples=(1.0,)))]).results
    assert one.status == status
    assert [setback.status for setback in one.setbacks] == [status]


def test_a_timing_round_that_did_not_finish_leaves_the_verdict_and_is_told(record, journal_of):
    [one] = pool([journal_of(record(), record("timeout", 1))]).results
    assert one.status == "ok"
    assert [(setback.round, setback.status) for setback in one.setbacks] == [(1, "timeout")]


def test_a_nan_in_any_round_speaks_for_the_cell(record, journal_of):
    [one] = pool([journal_of(record(), record("nan", 1, samples=(1.0,)))]).results
    assert one.status == "nan"


def test_timings_alone_are_no_verdict(record, journal_of):
    [one] = pool([journal_of(record(number=1, samples=(1.0,)))]).results
    assert one.status == "interrupted"
    assert "checks the numbers" in one.reason


def test_memory_of_an_emulated_verdict_is_no_measurement(record, journal_of):
    from mpsdiag.scenario.scenario import Measured

    emulated = record(emulate="2.8")
    emulated = emulated.model_copy(
        update={"measured": emulated.measured.model_copy(update={"peak_process_memory": 999})}
    )
    timed = record(number=1, samples=(1.0,), emulate="2.8", measured=Measured(peak_process_memory=5))
    assert pool([journal_of(emulated)]).results[0].peak_memory is None
    assert pool([journal_of(emulated, timed)]).results[0].peak_memory == 5
