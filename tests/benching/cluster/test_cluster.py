"""A real scheduler and two real worker processes on the loopback address."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from mpsdiag.benching.cluster import cluster as cluster_module
from mpsdiag.benching.cluster import fleet as fleet_module
from mpsdiag.benching.journal.journal import read_journal
from mpsdiag.benching.plan.matrix import MatrixSpec, changed
from mpsdiag.benching.plan.request import BenchRequest
from mpsdiag.benching.run.bench import prepare
from mpsdiag.benching.run.interrupt import Stop
from mpsdiag.benching.run.launch import LIGHT, Isolation
from mpsdiag.errors import BadInput, CannotDecide

pytest.importorskip("distributed")

HERE = Path(__file__).parents[1]
ONE = {"trainer": ["standard"], "padding_side": ["left"], "device": ["cpu"], "attn_implementation": ["sdpa", "eager"]}


def start(log, *words, machine=""):
    """A dask process in a group of its own, so that a worker can be killed with its nanny, as a machine would be.

    Machines of another `machine` are of another kind: variables whose values are shown are part of an environment.
    """
    with log.open("w") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *map(str, words)],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
                "PYTORCH_MPS_HIGH_WATERMARK_RATIO": machine,
            },
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@contextmanager
def started(folder, *machines):
    """A scheduler and a worker on each of some machines: address, scheduler, workers."""
    file = folder / "scheduler.json"
    common = ("--scheduler-file", file, "--no-dashboard", "--host", "127.0.0.1")
    processes = [start(folder / "scheduler.log", "scheduler", *common, "--port", "0")]
    processes += [
        start(
            folder / f"{number}.log",
            *("worker", *common, "--name", number, "--nthreads", "1", "--resources", "MPS=1"),
            *("--local-directory", folder / f"{number}"),
            machine=machine,
        )
        for number, machine in enumerate(machines)
    ]
    try:
        yield _address(file, workers=len(machines)), processes[0], processes[1:]
    finally:
        for process in processes:
            _kill(process)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Address of a scheduler, and its two workers, which are alike."""
    with started(tmp_path_factory.mktemp("fleet"), "1", "1") as (address, _, workers):
        yield address, workers


@pytest.fixture
def unlike(tmp_path):
    """The same with two workers that are not alike, and the scheduler's process."""
    (tmp_path / "unlike").mkdir()
    with started(tmp_path / "unlike", "1", "4") as found:
        yield found


def _address(file, workers):
    from distributed import Client

    end = time.monotonic() + 90
    while not file.exists():
        assert time.monotonic() < end, "the scheduler did not come up"
        time.sleep(0.1)
    with Client(scheduler_file=str(file), timeout=60, set_as_default=False) as client:
        client.wait_for_workers(workers, timeout=90)
        return client.scheduler.address


def _kill(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def session():
    made = []

    def make(*words, **values):
        made.append(_session(*words, **values))
        return made[-1]

    yield make
    for one in made:
        one.close()


def _session(address, out, function="fake_cells:quick", **values):
    spec = changed(MatrixSpec(), {**ONE, "rounds": 1, "max_rounds": 1, **values})
    isolation = Isolation(preload=(*LIGHT, "fake_cells"))
    return prepare(BenchRequest(spec, out, cluster=address, function=function, isolation=isolation))


def test_verdicts_and_timings_come_back_from_the_workers(fleet, session, tmp_path, quiet):
    made = session(fleet[0], tmp_path, seed=[0, 1, 2])
    outcome = made.run(quiet)
    assert made.exit_code(outcome) == 0
    records = read_journal(tmp_path).records
    assert len(records) == 12
    assert all(record.environment["versions"]["torch"] for record in records)
    assert {record.timing is not None for record in records if record.round} == {True}


def test_cells_that_are_compared_are_timed_by_one_worker_however_idle_the_other_is(fleet, session, tmp_path, quiet):
    made = session(fleet[0], tmp_path, "fake_cells:whereabouts", seed=[0, 1], rounds=3, max_rounds=3)
    assert made.exit_code(made.run(quiet)) == 0
    workers = {
        seed: {record.reason for record in quiet.records if record.round and record.cell.seed == seed}
        for seed in (0, 1)
    }
    assert [len(found) for found in workers.values()] == [1, 1]
    assert workers[0] != workers[1]


def test_on_unlike_machines_a_cell_has_its_verdict_where_it_is_timed_also_after_a_restart(
    unlike, session, tmp_path, quiet
):
    for rounds in (1, 2):  # the second time it resumes
        made = session(unlike[0], tmp_path / "out", seed=[0, 1, 2], rounds=rounds, max_rounds=rounds)
        assert made.exit_code(made.run(quiet)) == 0
    machines = {}
    for record in read_journal(tmp_path / "out").records:
        machines.setdefault(record.cell.seed, set()).add(
            record.environment["variables"]["PYTORCH_MPS_HIGH_WATERMARK_RATIO"]
        )
    assert [len(found) for found in machines.values()] == [1, 1, 1]
    assert set().union(*machines.values()) == {"1", "4"}


def test_cells_of_a_lost_machine_wait_and_then_go_to_one_of_another_kind(unlike, session, tmp_path, quiet, monkeypatch):
    monkeypatch.setattr(cluster_module, "PATIENCE", 1.0)
    made = session(unlike[0], tmp_path / "out", seed=[0, 1], rounds=0)
    _kill(unlike[2][0])
    assert made.exit_code(made.run(quiet)) == 0
    found = {record.environment["variables"]["PYTORCH_MPS_HIGH_WATERMARK_RATIO"] for record in quiet.records}
    assert found == {"4"}


def test_a_lost_scheduler_is_a_sentence_and_what_finished_is_kept(unlike, session, tmp_path, quiet, monkeypatch):
    monkeypatch.setattr(fleet_module, "CONNECT_SECONDS", 3.0)
    made = session(unlike[0], tmp_path / "out", "fake_cells:slow", seed=list(range(20)), rounds=0)

    def kill_half_way():
        while len(quiet.records) < 3:
            time.sleep(0.05)
        _kill(unlike[1])

    killer = threading.Thread(target=kill_half_way)
    killer.start()
    outcome = made.run(quiet)
    killer.join()
    assert re.search(r"scheduler at tcp.* is lost .*to resume", outcome.broken)
    assert made.exit_code(outcome) == 3
    # What finished is reported all the same, and is on the disk.
    assert len(read_journal(tmp_path / "out").records) == len(quiet.records) == len(outcome.records) >= 3


def test_cells_that_go_wrong_stay_in_their_child(fleet, session, tmp_path, quiet):
    made = session(
        fleet[0], tmp_path, "fake_cells:faulty", attn_implementation=["sdpa"], seed=[0, 1, 3, 9, 11], rounds=0
    )
    outcome = made.run(quiet)
    assert made.exit_code(outcome) == 3
    assert {r.cell.seed: r.signal for r in outcome.records} == {0: None, 1: "SIGABRT", 3: "SIGSEGV", 9: None, 11: None}
    assert len(made.site.executor.fleet.client.nthreads()) == 2  # no worker noticed


def test_stopping_ends_what_runs_on_the_workers(fleet, session, tmp_path, quiet):
    made = session(fleet[0], tmp_path, "fake_cells:sleeps", seed=[0, 1, 2], rounds=0)
    stop = Stop(grace=0.5)
    threading.Timer(2.0, stop.ask).start()
    begun = time.monotonic()
    outcome = made.run(quiet, stop)
    assert time.monotonic() - begun < 30
    assert outcome.exit_code == 130
    assert {record.status for record in read_journal(tmp_path).records} <= {"interrupted"}


def test_what_a_lost_worker_was_running_runs_again_elsewhere(fleet, session, tmp_path, quiet):
    address, workers = fleet
    timed = session(address, tmp_path / "timed", seed=[0, 1, 2, 3])
    made = session(
        address, tmp_path, "fake_cells:slow", attn_implementation=["sdpa"], seed=list(range(3, 12)), rounds=0
    )

    def kill_half_way():
        while len(quiet.records) < 3:
            time.sleep(0.05)
        _kill(workers[0])

    killer = threading.Thread(target=kill_half_way)
    killer.start()
    outcome = made.run(quiet)
    killer.join()
    assert made.exit_code(outcome) == 0
    records = read_journal(tmp_path).records
    assert sorted(record.cell.seed for record in records) == list(range(3, 12))
    assert {record.status for record in records} == {"ok"}
    assert (tmp_path / "journal.jsonl").read_bytes().count(b"\n") == 10
    # A bench that knew both workers times its cells on the one that is left.
    assert timed.exit_code(timed.run(quiet)) == 0


def test_timing_needs_a_worker_that_offers_it(fleet, session, tmp_path, quiet, monkeypatch):
    monkeypatch.setattr(fleet_module, "RESOURCE", "UNHEARD_OF")
    with pytest.raises(BadInput, match="No worker offers the resource"):
        session(fleet[0], tmp_path, seed=[0])
    assert session(fleet[0], tmp_path, seed=[0], rounds=0).run(quiet).exit_code == 0


def test_no_scheduler_and_no_dask(monkeypatch):
    monkeypatch.setattr(fleet_module, "CONNECT_SECONDS", 1.0)
    with pytest.raises(CannotDecide, match=r"No dask scheduler answers at tcp://127\.0\.0\.1:9"):
        fleet_module.connect("tcp://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(BadInput, match=r"pip install 'mpsdiag\[cluster\]'"):
        fleet_module.connect("tcp://127.0.0.1:9")
