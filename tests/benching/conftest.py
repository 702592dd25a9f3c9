"""Cells without torch, and a run of them without processes where the test is about something else."""

import sys
from pathlib import Path

import pytest

from mpsdiag.benching.journal.record import Header, Timing
from mpsdiag.benching.plan.expand import Plan
from mpsdiag.benching.plan.matrix import MatrixSpec
from mpsdiag.benching.plan.request import BenchRequest
from mpsdiag.benching.run.executor import Site
from mpsdiag.benching.run.interrupt import Stop
from mpsdiag.benching.run.launch import LIGHT, Isolation
from mpsdiag.benching.run.runner import MatrixRun
from mpsdiag.scenario.scenario import Measured, Scenario

HERE = Path(__file__).parent
VERSIONS = {"torch": "2.13.0", "transformers": "5.23.0"}
NOW = "2026-11-01T00:00:00.000+00:00"

if str(HERE) not in sys.path:  # children get the parent's path, and find the fake cells by it
    sys.path.insert(0, str(HERE))


class Quiet:
    """A listener that keeps what it hears."""

    def __init__(self):
        self.notes, self.legs, self.records = [], [], []

    def leg(self, title, total, done):
        self.legs.append((title, total, done))

    def ended(self, record):
        self.records.append(record)

    def note(self, sentence):
        self.notes.append(sentence)


class FakeExecutor:
    """Answers at once, in this process; `answers` maps (seed, round) to a status or to fields of a Record."""

    def __init__(self, answers=None, samples=lambda job: [0.1] * job.cell.repeats):
        self.answers = answers or {}
        self.samples = samples
        self.ran = []
        self.before_each = lambda job: None

    def run(self, jobs, stop):
        for job in jobs:
            if stop.asked:
                return
            self.before_each(job)
            self.ran.append((job.cell.seed, job.cell.attn_implementation, job.round))
            yield self._ended(job)

    def _ended(self, job):
        answer = self.answers.get((job.cell.seed, job.round), "ok")
        if not isinstance(answer, str):
            return job.record(**answer)
        timing = None
        if job.round and answer == "ok":
            samples = self.samples(job)
            timing = Timing(device="cpu", warmup=job.cell.warmup, train_step=samples, eval_step=samples)
        measured = None if job.round else Measured(eval_loss=5.0)
        return job.record(status=answer, started=NOW, seconds=0.5, timing=timing, measured=measured)


@pytest.fixture
def fake_executor():
    return FakeExecutor


@pytest.fixture
def header():
    return Header(mpsdiag="0.1.0", command="mpsdiag bench", created=NOW)


@pytest.fixture
def quiet():
    return Quiet()


@pytest.fixture
def light():
    return Isolation(preload=LIGHT)


@pytest.fixture
def start_run(tmp_path, header, quiet):
    """Run a plan of cells that differ in seed; returns (outcome, executor)."""

    def start(cells, executor=None, folder=tmp_path, stop=None, rule=None, **asked):
        executor = executor or FakeExecutor()
        plan = cells if isinstance(cells, Plan) else Plan(tuple(cells))
        spec = MatrixSpec() if rule is None else MatrixSpec(rounds=rule.rounds, max_rounds=rule.most)
        site = Site(plan, executor, VERSIONS, {}, "spawn")
        run = MatrixRun(BenchRequest(spec, folder, **asked), plan, site, header, quiet, stop or Stop())
        return run.run(), executor

    return start


@pytest.fixture
def executor_answers():
    """An executor all of whose verdicts found the same."""

    def make(measured):
        ended = {"status": "ok", "measured": measured}
        return FakeExecutor({(seed, 0): ended for seed in range(100)})

    return make


@pytest.fixture
def seeds():
    return lambda number, **fields: [Scenario(seed=seed, **fields) for seed in range(number)]
