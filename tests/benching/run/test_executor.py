"""Who asks to stop before the first cell, or while the first process starts, waits for no cell."""

import os
import subprocess
import sys

import pytest

from mpsdiag.benching.journal.record import Job
from mpsdiag.benching.run.executor import LocalExecutor
from mpsdiag.benching.run.interrupt import Stop
from mpsdiag.benching.run.launch import Isolation
from mpsdiag.errors import CannotDecide
from mpsdiag.scenario.scenario import Scenario


class FakeIsolation(Isolation):
    """Starts nothing; every start ends as configured, and the user may ask to stop in the meantime."""

    def __init__(self, status, asks=False):
        super().__init__("forkserver")
        self.status, self.asks, self.ran = status, asks, []

    def run(self, job, stop=None):
        self.ran.append(job.key)
        if self.asks:
            stop.ask()
        return job.record(status=self.status, reason="why")


@pytest.fixture
def two_jobs():
    return [Job(key=key, cell=Scenario(), log="") for key in "ab"]


@pytest.mark.parametrize("together", [1, 2])
def test_no_process_is_started_for_who_asked_to_stop_before(two_jobs, together):
    isolation, stop = FakeIsolation("ok"), Stop()
    stop.ask()
    assert list(LocalExecutor(isolation, jobs=together).run(two_jobs, stop)) == []
    assert isolation.ran == []


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("status", ["ok", "interrupted"])
def test_asking_while_the_first_process_starts_begins_no_cell(two_jobs, together, status):
    isolation = FakeIsolation(status, asks=True)
    assert list(LocalExecutor(isolation, jobs=together).run(two_jobs, Stop())) == []
    assert isolation.ran == ["start"]


def test_a_first_process_that_goes_wrong_is_said(two_jobs):
    with pytest.raises(CannotDecide, match="No process can be started here: why"):
        list(LocalExecutor(FakeIsolation("error")).run(two_jobs, Stop()))


def test_a_fork_server_that_cannot_start_is_one_sentence_with_its_log(tmp_path):
    (tmp_path / "broken_at_import.py").write_text("raise RuntimeError('planted')")
    program = (
        "from pathlib import Path; from mpsdiag.benching.journal.record import Job;"
        "from mpsdiag.benching.run.executor import LocalExecutor;"
        "from mpsdiag.benching.run.interrupt import Stop; from mpsdiag.benching.run.launch import Isolation;"
        "from mpsdiag.errors import CannotDecide; from mpsdiag.scenario.scenario import Scenario\n"
        f"executor = LocalExecutor(Isolation('forkserver', ('broken_at_import',)), logs=Path({str(tmp_path)!r}))\n"
        "try:\n    list(executor.run([Job(key='a', cell=Scenario(), log='')], Stop()))\n"
        "except CannotDecide as problem:\n    print(problem)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout.startswith("No process can be started here: ")
    assert "start.log ends with: RuntimeError: planted" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
