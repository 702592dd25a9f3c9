"""Where jobs run: on this machine (timings one at a time), or on the workers of a cluster."""

import concurrent.futures
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mpsdiag import environment
from mpsdiag.benching.journal.record import Job, Record
from mpsdiag.benching.plan.expand import Plan, expand
from mpsdiag.benching.plan.matrix import MatrixSpec
from mpsdiag.benching.plan.request import BenchRequest
from mpsdiag.benching.run.interrupt import Stop
from mpsdiag.benching.run.launch import Isolation, StartMethod, start_method
from mpsdiag.errors import BadInput, CannotDecide
from mpsdiag.release_environment import facts_in, find

LOGS = "logs"


class Executor(Protocol):
    """Runs jobs and hands out the record of each as it ends."""

    def run(self, jobs: Sequence[Job], stop: Stop) -> Iterator[Record]:
        """Run jobs; the next one starts only when the last result was taken, and none after a request to stop."""

    def close(self) -> None:
        """Release its resources."""


@dataclass
class LocalExecutor:
    """Runs jobs on this machine, each in its own process, `jobs` at once if they are not timed.

    `environment` describes this machine in every record; `logs` is the folder for the log of the fork server.
    """

    isolation: Isolation
    environment: dict[str, Any] = field(default_factory=dict)
    logs: Path = Path()
    jobs: int = 1
    _ready: bool = field(default=False, init=False)

    def run(self, jobs: Sequence[Job], stop: Stop) -> Iterator[Record]:
        """See `Executor`. Raises CannotDecide if not even an empty process can be started here."""
        if not jobs:
            return
        self._prepare(stop)
        together = 1 if any(job.round for job in jobs) else self.jobs
        waiting = iter(() if stop.asked else jobs)
        with concurrent.futures.ThreadPoolExecutor(together, thread_name_prefix="cell") as threads:
            running = {threads.submit(self._run, job, stop) for job in itertools.islice(waiting, together)}
            while running:
                done, running = concurrent.futures.wait(running, 0.1, concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                    running |= {
                        threads.submit(self._run, job, stop) for job in itertools.islice(waiting, not stop.asked)
                    }

    def close(self) -> None:
        """Nothing to release: a fork server ends with this process."""

    def _run(self, job: Job, stop: Stop) -> Record:
        facts = facts_in(job.cell.environment, self.environment)
        return self.isolation.run(job, stop).model_copy(update={"environment": facts})

    def _prepare(self, stop: Stop) -> None:
        """Start the fork server before the first cell, so that no cell pays for its imports."""
        if self._ready or stop.asked:
            return
        if self.isolation.start == "forkserver":
            ended = self.isolation.warm_up(self.logs / "start.log", stop)
            if ended.status == "interrupted":
                return
            if ended.status != "ok":
                last = (ended.log_tail.strip().splitlines() or ["nothing"])[-1]
                raise CannotDecide(
                    f"No process can be started here: {ended.reason}. "
                    f"The log {self.logs / 'start.log'} ends with: {last}"
                )
        self._ready = True


@dataclass(frozen=True)
class Site:
    """This machine, or a cluster: the plan of the whole matrix there, and its executor.

    `versions` of torch and transformers are part of every key, `facts` describe the first machine, `start` is how
    processes are started there, and `machines` how many work side by side. The caller must close the executor.
    """

    plan: Plan
    executor: Executor
    versions: dict[str, str]
    facts: dict[str, Any]
    start: StartMethod
    machines: int = 1


def here(request: BenchRequest) -> Site:
    """This machine. Raises BadInput for data or a model path that cannot be used, or too many cells."""
    _require_inputs(request.spec)
    plan = expand(request.spec)
    facts = environment.gather().model_dump(exclude_none=True)
    start = start_method(cell.device for cell in plan.cells)
    isolation = request.isolation or Isolation(start)
    executor = LocalExecutor(isolation, facts, request.out / LOGS, request.jobs)
    return Site(plan, executor, environment.versions(), facts, start)


def on_cluster(request: BenchRequest, address: str, note: Callable[[str], None]) -> Site:
    """The workers of a dask scheduler.

    Raises BadInput for too many cells, for environments, for workers that differ or none of which may time a cell;
    CannotDecide if no scheduler answers, or it has no workers.
    """
    from mpsdiag.benching.cluster.cluster import ClusterExecutor
    from mpsdiag.benching.cluster.fleet import connect

    if request.spec.environments:
        raise BadInput("--environment names environments of this machine. Leave out --cluster.")
    fleet = connect(address)
    try:
        if request.spec.rule.rounds:
            fleet.require_timing()
        plan = expand(request.spec, unavailable=fleet.unavailable, resolve=fleet.resolve, files=fleet.files)
    except BaseException:
        fleet.close()
        raise
    preload = None if request.isolation is None else request.isolation.preload
    executor = ClusterExecutor(fleet, preload, note=note)
    start = start_method(cell.device for cell in plan.cells)
    return Site(plan, executor, fleet.first["versions"], fleet.first["environment"], start, len(fleet.workers))


def _require_inputs(spec: MatrixSpec) -> None:
    """Check models and data before a cell fails because of them."""
    from mpsdiag.inputs.names import classify
    from mpsdiag.inputs.texts import load_texts

    for model in spec.axes.model:
        classify("model", model)
    for name in spec.environments:
        find(name)
    for dataset in dict.fromkeys(one for one in (spec.dataset, spec.eval_dataset) if one is not None):
        load_texts(dataset, limit=1)
