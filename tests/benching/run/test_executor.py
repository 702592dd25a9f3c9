"""Who asks to stop before the first cell, or while the first process starts, waits for no cell."""

import pytest

from mpsdiag.benching.journal.record import Ended, Job
from mpsdiag.benching.run.executor import LocalExecutor
from mpsdiag.benching.run.interrupt import Stop
from mpsdiag.benching.run.launch import Isolation
from mpsdiag.errors import CannotDecide
from mpsdiag.scenario.scenario import Scenario


class FakeIsolation(Isolation):
    """Starts nothing; every start ends as it is told, and the user asks to stop meanwhile if told so."""

    def __init__(self, status, asks=False):
        super().__init__("forkserver")
        self.status, self.asks, self.ran = status, asks, []

    def run(self, job, stop=None):
        self.ran.append(job.key)
        if self.asks:
            stop.ask()
        return Ended(status=self.status, reason="why", started="now", seconds=0.0)


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
