"""A child that aborts, hangs, prints garbage or is killed costs its own job and nothing else."""

from __future__ import annotations

import os
import sys
import textwrap
import time

import pytest

from mpsdiag.emulation.selection import Emulation
from mpsdiag.probes.children import run_isolated
from mpsdiag.probes.run import run_probe

JOBS = [("SDPA002", "training"), ("SDPA002", "evaluation"), ("SDPA003", "training")]


HEAD = """
import json, os, signal, subprocess, sys, time
spec = json.load(sys.stdin)
results = open(spec["results"], "a")
def write(text):
    results.write(text)
    results.flush()
def at(job):
    pass
"""
LOOP = """
for job in spec["jobs"]:
    write(json.dumps({"started": job}) + chr(10))
    at(job)
    result = {"status": "pass", "checks": [], "reason": "by the stand-in"}
    write(json.dumps({"finished": job, "result": result, "seconds": 0.25}) + chr(10))
"""


def child(body):
    """A stand-in that speaks the protocol; `body` is what it does at a job."""
    return (sys.executable, "-c", HEAD + textwrap.indent(textwrap.dedent(body), "    ") + LOOP)


def statuses(answers):
    return [answers[job][0].status for job in JOBS]


def test_all_jobs_share_one_child():
    answers = run_isolated(JOBS, "cpu", None, command=child(""))
    assert statuses(answers) == ["pass", "pass", "pass"]
    assert answers[JOBS[0]][0].reason == "by the stand-in"
    assert answers[JOBS[0]][1] == 0.25


@pytest.mark.parametrize("name", ["SIGABRT", "SIGSEGV", "SIGBUS"])
def test_a_crash_fails_its_own_job_and_the_rest_goes_on(name):
    body = f"""
        if job == ["SDPA002", "evaluation"]:
            print("failed assertion `no such shape'", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.{name})
    """
    answers = run_isolated(JOBS, "cpu", None, command=child(body))
    assert statuses(answers) == ["pass", "fail", "pass"]
    (check,) = answers[JOBS[1]][0].checks
    assert check.seen == "aborts the process"
    assert check.name == f"{name}: failed assertion `no such shape'"
    assert check.mode == "evaluation"


def test_a_hang_is_stopped_and_is_an_error_not_a_failure():
    body = """
        if job == ["SDPA002", "evaluation"]:
            time.sleep(60)
    """
    begin = time.monotonic()
    answers = run_isolated(JOBS, "cpu", None, command=child(body), seconds=0.7)
    assert statuses(answers) == ["pass", "error", "pass"]
    assert "no answer within 1 s" in answers[JOBS[1]][0].reason
    assert time.monotonic() - begin < 20


def test_a_hang_takes_its_own_children_along(tmp_path):
    note = tmp_path / "pid"
    body = f"""
        grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        open({str(note)!r}, "w").write(str(grandchild.pid))
        time.sleep(60)
    """
    run_isolated(JOBS[:1], "cpu", None, command=child(body), seconds=1.5)
    pid = int(note.read_text())
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if _is_zombie(pid):
            return
        time.sleep(0.05)
    pytest.fail("the grandchild lives on")


def _is_zombie(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def test_garbage_on_stdout_does_no_harm():
    answers = run_isolated(JOBS, "cpu", None, command=child('print("\\x00\\xff{not json" * 9999, flush=True)'))
    assert statuses(answers) == ["pass", "pass", "pass"]


def test_a_torn_result_is_an_error_of_that_job():
    body = """
        write('{"finished": ["SDPA002", "tr')
        os._exit(7)
    """
    answers = run_isolated(JOBS[:1], "cpu", None, command=child(body))
    result = answers[JOBS[0]][0]
    assert result.status == "error"
    assert "exit code 7" in result.reason


def test_killed_from_outside_is_an_error_because_it_proves_nothing():
    answers = run_isolated(JOBS[:1], "cpu", None, command=child("os.kill(os.getpid(), signal.SIGKILL)"))
    assert answers[JOBS[0]][0].status == "error"
    assert "SIGKILL" in answers[JOBS[0]][0].reason


def test_a_child_that_cannot_start_is_an_error_of_every_job():
    command = (sys.executable, "-c", "import sys; sys.exit('no such module')")
    answers = run_isolated(JOBS, "cpu", None, command=command)
    assert statuses(answers) == ["error", "error", "error"]
    assert "no such module" in answers[JOBS[0]][0].reason


def test_the_real_child_really_aborts_and_answers_for_the_other_grad_mode():
    finding = run_probe("SDPA017", device="cpu", emulation=Emulation("2.8"))
    assert (finding.status, finding.training, finding.evaluation) == ("fail", "pass", "fail")
    assert finding.failed[0].name.startswith("SIGABRT")
    assert finding.failed[0].seen == "aborts the process"


def test_the_real_child_passes_what_this_process_passes_numbers_included():
    here = run_probe("SDPA014", device="cpu", emulation=Emulation("2.11", 14, ("SDPA014",)), isolate=False)
    there = run_probe("SDPA014", device="cpu", emulation=Emulation("2.11", 14, ("SDPA014",)), isolate=True)
    assert there.failed == here.failed
    assert there.detail == here.detail
    assert there.status == here.status == "fail"
