"""What is advised, from evidence made by hand."""

import math

import pytest

from mpsdiag.checking.advice import advise, why
from mpsdiag.checking.diagnosis import FixResult, Judged, ProbeResult
from mpsdiag.scenario.scenario import Measured, Scenario


def probe(status="fail"):
    return ProbeResult(id="SDPA001", title="", status=status, detail="", training="pass", evaluation=status)


def fix(name, *, resolves, exact):
    numbers = {"max_abs_logit_diff": None, "eval_loss": 5.0, "loss_moved_by": 0.0}
    return FixResult(name=name, kind="attention", resolves=resolves, exact=exact, why="", **numbers)


def advised(scenario, fixes=(), *, verdict="affected", probes=None):
    judged = Judged(verdict=verdict, reason="a reason")
    return advise(judged, [probe()] if probes is None else probes, scenario, Scenario(), fixes, None)


def commands(found):
    return [command for advice in found for command in advice.commands]


def nan(**more):
    return Measured(eval_losses=[math.nan, 5.0], nonfinite_batches=1, dead_rows=5, **more)


INSTALL = 'mpsdiag.install("safe_sdpa")'


@pytest.mark.parametrize(
    ("fixes", "offered"),
    [
        ([fix("safe_sdpa", resolves=True, exact=True)], True),
        ([fix("safe_sdpa", resolves=False, exact=False)], False),
        ([fix("safe_sdpa", resolves=True, exact=False)], False),
        ([], False),
    ],
)
def test_safe_sdpa_is_offered_where_it_was_seen_to_resolve_it_exactly(fixes, offered):
    assert (INSTALL in commands(advised(nan(), fixes))) == offered


def test_without_a_scenario_the_failed_probe_is_reason_enough():
    assert INSTALL in commands(advised(None))
    assert INSTALL not in commands(advised(None, probes=[probe("pass")]))


@pytest.mark.parametrize(("printed", "hides"), [(5.0, True), (math.nan, False)])
def test_the_filter_is_mentioned_where_it_hides_something(printed, hides):
    found = commands(advised(nan(stock_eval_loss=printed)))
    assert any("logging_nan_inf_filter" in command for command in found) == hides


def test_nothing_decided_says_so():
    (only,) = advised(None, verdict="undecided", probes=[])
    assert only.text == "Undecided: a reason."


def test_why_a_fix_helps():
    moved = Measured(exact=False, loss_moved_by=0.25)
    assert "moves eval_loss by +0.25" in why("eager", moved)
    assert why("safe_sdpa", Measured(exact=True)).startswith("equal to the float64")
    assert why("eager", nan()) == "1 of 2 evaluation batches have a non-finite loss"
    assert "before the loss" in why("cpu_loss", nan())
