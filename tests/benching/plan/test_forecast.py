"""What is left to run, and how long that takes."""

import pytest

from mpsdiag.benching.journal.record import Job, Timing
from mpsdiag.benching.plan.forecast import Work, estimate, in_words, remaining
from mpsdiag.benching.run.rounds import StopRule
from mpsdiag.scenario.scenario import Scenario

RULE = StopRule(2, 5)
BASE, OTHER = Scenario(), Scenario(attn_implementation="eager")


def rounds(cell, number, *, verdict="ok", noise=0.0, last="ok"):
    """The verdict of a cell and so many timing rounds; `noise` makes every second one slower."""
    made = {}
    for one in range(number + 1):
        status = verdict if one == 0 else last if one == number else "ok"
        steps = [0.1 + noise * (one % 2)] * 3
        timing = Timing(device="cpu", warmup=0, eval_step=steps) if one and status == "ok" else None
        job = Job(key="k", cell=cell, round=one, log="")
        made[one] = job.record(status=status, seconds=1.0, timing=timing)
    return made


@pytest.mark.parametrize(
    ("rule", "found", "left"),
    [
        (RULE, {}, Work(2, 4, 10, 0)),
        (StopRule(0, 5), {}, Work(2, 0, 0, 0)),
        (RULE, {BASE: rounds(BASE, 0)}, Work(1, 4, 10, 1)),
        (RULE, {BASE: rounds(BASE, 1), OTHER: rounds(OTHER, 1)}, Work(0, 2, 8, 4)),
        (RULE, {BASE: rounds(BASE, 2), OTHER: rounds(OTHER, 2)}, Work(0, 0, 0, 6)),
        (RULE, {BASE: rounds(BASE, 2), OTHER: rounds(OTHER, 2, noise=0.5)}, Work(0, 2, 6, 6)),
        (RULE, {BASE: rounds(BASE, 5), OTHER: rounds(OTHER, 5, noise=0.5)}, Work(0, 0, 0, 12)),
        (RULE, {BASE: rounds(BASE, 2), OTHER: rounds(OTHER, 0, verdict="crash")}, Work(0, 0, 0, 4)),
        (RULE, {BASE: rounds(BASE, 2), OTHER: rounds(OTHER, 1, last="timeout")}, Work(0, 0, 0, 5)),
    ],
)
def test_what_the_journal_has_is_not_run_again(rule, found, left):
    assert remaining([BASE, OTHER], rule, "sdpa", found) == left


def test_nothing_left_takes_no_time():
    assert estimate(Work(done=9), "forkserver") == (0.0, 0.0)


def test_an_estimate_prefers_what_was_measured(start_run, seeds):
    outcome, _ = start_run(seeds(4), rule=StopRule(1, 2))
    work = Work(10, 10, 20)
    least, most = estimate(work, "forkserver", outcome.records)
    assert (least - 5.0, most - 5.0) == (10 * (0.5 + 0.5), 10 * (0.5 + 1.0))
    assert estimate(Work(1), "spawn")[0] > estimate(Work(1), "forkserver")[0] - 5.0
    alone, two = (estimate(work, "spawn", machines=number)[0] for number in (1, 2))
    assert alone == 2 * two
    assert [in_words(seconds) for seconds in (40.2, 200, 9000)] == ["40 s", "3 min", "2.5 h"]
