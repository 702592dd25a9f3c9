"""From a trigger to a finding: statuses, skips, errors, levels."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from mpsdiag.emulation.selection import EmulatedAbort, Emulation
from mpsdiag.environment import version_numbers
from mpsdiag.errors import BadInput
from mpsdiag.probes import run as running
from mpsdiag.probes.declaration import Check, ModeResult, Skip
from mpsdiag.probes.known import CATALOGUE
from mpsdiag.probes.run import conclude, run_level, run_mode, run_probe, runnable
from mpsdiag.serialization import dumps

PROBE = CATALOGUE["SDPA002"]
PASS, FAIL = Check("one", ok=True, seen="right"), Check("two", ok=False, seen="NaN")


def with_trigger(trigger):
    return dataclasses.replace(PROBE, trigger=trigger)


def ran(trigger, mode="evaluation", emulation=None):
    return run_mode(with_trigger(trigger), mode, "cpu", emulation)


def raising(problem, *checks):
    def trigger(_):
        yield from checks
        raise problem

    return trigger


@pytest.mark.parametrize(
    ("trigger", "status", "reason"),
    [
        (lambda _: [PASS], "pass", ""),
        (lambda _: [PASS, FAIL], "fail", ""),
        (lambda _: [], "skip", ""),
        (raising(Skip("no such device")), "skip", "no such device"),
        (raising(Skip("no float16"), PASS), "pass", "no float16"),
        (raising(Skip("no float16"), FAIL), "fail", "no float16"),
        (raising(ZeroDivisionError("by zero\nand more")), "error", "ZeroDivisionError: by zero"),
        (raising(RuntimeError(""), FAIL), "error", "RuntimeError: RuntimeError"),
        (raising(EmulatedAbort("gone")), "fail", ""),
    ],
)
def test_what_a_trigger_does_becomes_a_status(trigger, status, reason):
    result = ran(trigger)
    assert (result.status, result.reason) == (status, reason)


def test_an_abort_is_a_failed_check():
    (check,) = ran(raising(EmulatedAbort("gone"))).checks
    assert (check.ok, check.seen, check.name) == (False, "aborts the process", "gone")


def test_a_trigger_runs_in_its_mode_under_the_emulation_on_one_thread():
    seen = {}

    def trigger(lab):
        from mpsdiag.emulation.mode import active

        seen.update(mode=lab.mode, active=active(), threads=torch.get_num_threads(), release=lab.release)
        return [PASS]

    before = torch.get_num_threads()
    ran(trigger, "training", Emulation("2.10"))
    assert seen == {"mode": "training", "active": Emulation("2.10"), "threads": 1, "release": (2, 10)}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("training", "evaluation", "status"),
    [
        ("pass", "pass", "pass"),
        ("pass", "fail", "fail"),
        ("error", "fail", "fail"),
        ("error", "pass", "error"),
        ("skip", "pass", "pass"),
        ("skip", "skip", "skip"),
    ],
)
def test_the_worse_mode_decides_and_a_skip_is_no_pass(training, evaluation, status):
    checks = {"pass": (PASS,), "fail": (PASS, FAIL), "skip": (), "error": ()}
    results = {
        "training": ModeResult(training, checks[training], "why" if not checks[training] else ""),
        "evaluation": ModeResult(evaluation, checks[evaluation], "why" if not checks[evaluation] else ""),
    }
    finding = conclude(PROBE, results, 1.5)
    assert (finding.status, finding.training, finding.evaluation) == (status, training, evaluation)
    assert finding.detail
    assert finding.seconds == 1.5
    if status in {"skip", "error"}:
        assert finding.detail == "why"


def test_a_finding_says_where_how_wrong_and_what_to_do():
    finding = run_probe("SDPA003", device="cpu", emulation=Emulation("2.8"))
    assert "1 of 2 outputs wrong, in evaluation" in finding.detail
    assert "allowed" in finding.detail
    assert finding.remedy.commands
    assert finding.upstream[0].endswith("/181133")
    document = json.loads(dumps(finding))
    assert document["failed"][0]["error"] > document["failed"][0]["bound"] > 0


def test_an_unknown_probe_is_named():
    with pytest.raises(BadInput, match="Unknown probe 'SDPA999'"):
        run_probe("SDPA999", device="cpu")
    assert runnable("SWEEP").id == "SWEEP"


@pytest.fixture
def thin_sweep(monkeypatch):
    """Two head dims, few lengths: the same code, a second of work."""
    from mpsdiag.probes import sweep

    monkeypatch.setattr(sweep, "HEAD_DIMS", (64,))
    monkeypatch.setattr(sweep, "QUERIES", (1, 4, 16))
    monkeypatch.setattr(sweep, "KEYS", (None, 64, 1024))


@pytest.fixture
def in_this_process(monkeypatch):
    """Modelled aborts raise here instead of taking a child down: that is tested elsewhere."""
    monkeypatch.setattr(
        running,
        "run_isolated",
        lambda jobs, device, emulation: {
            (name, mode): (run_mode(runnable(name), mode, device, emulation), 0.0) for name, mode in jobs
        },
    )


@pytest.mark.usefixtures("thin_sweep", "in_this_process")
def test_level_three_on_the_real_cpu_passes_or_skips_with_a_reason():
    findings, old = run_level(3, "cpu", None), version_numbers(torch.__version__) < (2, 6)
    assert [finding.id for finding in findings] == [*CATALOGUE, "SWEEP"]
    for finding in findings:
        # The CPU of torch 2.5 itself swallows a NaN in the query.
        expected = {"fail"} if (finding.id, old) == ("SDPA020", True) else {"pass", "skip"}
        assert finding.status in expected, (finding.id, finding.detail)
        assert finding.detail
    # The fully masked row, and what has nothing to do with MPS alone, did run.
    ran_here = {finding.id for finding in findings if finding.status == "pass"}
    assert ran_here >= {"SDPA001", "SDPA002", "SDPA004", "SDPA009", "SDPA012", "SDPA014", "SDPA025", "SWEEP"}


@pytest.mark.usefixtures("thin_sweep", "in_this_process")
@pytest.mark.parametrize("release", ["2.4", "2.8", "2.11", "2.13"])
def test_level_three_lists_exactly_the_defects_of_a_release(release):
    from mpsdiag.probes.run import predicted

    findings = run_level(3, "cpu", Emulation(release))
    failed = {finding.id for finding in findings if finding.status == "fail"}
    skipped = {finding.id for finding in findings if finding.status == "skip"}
    assert failed == set(predicted(release)) - skipped
    assert skipped & set(predicted(release)) <= {"SDPA012"}
    sweep = findings[-1]
    assert sweep.status == "pass"
    assert ("all explained by" in sweep.detail) == (release in {"2.4", "2.8", "2.11"})


def test_a_real_apple_gpu_is_probed_in_children_at_level_three(monkeypatch):
    asked = []

    def nothing(jobs, device, _emulation):
        asked.extend(name for name, _ in jobs)
        assert device == "mps"
        return {job: (ModeResult("skip", reason="not run"), 0.0) for job in jobs}

    monkeypatch.setattr(running, "run_isolated", nothing)
    findings = run_level(3, "mps", None)
    assert set(asked) == {probe.id for probe in CATALOGUE.values() if probe.trigger} | {"SWEEP"}
    assert {finding.status for finding in findings} == {"skip"}
    asked.clear()
    run_probe("SDPA003", device="mps")
    assert asked == ["SDPA003", "SDPA003"]
