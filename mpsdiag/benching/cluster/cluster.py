"""A matrix on several machines, through dask.distributed; every cell still runs in a child of its worker.

Workers declare their capacity: `dask worker ... --resources "MPS=1"` takes one timed cell at a time. dask only sends
cells to the worker that `mpsdiag.benching.cluster.placement` chooses: its own scheduling would let an idle machine
take a cell away from those it is compared with. JSON text goes over the wire, wrapped in dask's own pickles: use a
trusted network, or dask's TLS. See docs/fleet.md.
"""

import contextlib
import json
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mpsdiag.benching.cluster.fleet import RESOURCE, Fleet
from mpsdiag.benching.cluster.placement import Placement
from mpsdiag.benching.cluster.worker import run_job, stop_on_worker
from mpsdiag.benching.journal.record import Job, Record
from mpsdiag.benching.run.interrupt import STOPPED, Stop
from mpsdiag.benching.run.rounds import group_of
from mpsdiag.errors import CannotDecide
from mpsdiag.scenario.scenario import Scenario

POLL = 0.2
QUIET_SECONDS = 30.0
PATIENCE = 15.0
"""Seconds that cells wait for a lost worker, or one of its kind, before they go to a machine of another kind."""
LOSSES = 3
"""How many workers a cell may lose before it is held to be the cause."""


@dataclass(frozen=True)
class _Task:
    """A cell and where it is."""

    job: Job
    group: Scenario
    address: str = ""


@dataclass
class ClusterExecutor:
    """Runs jobs on the workers of a dask scheduler; see `mpsdiag.benching.run.executor.Executor`.

    `preload` is for the workers' fork servers; None leaves it to them. `note` is called with messages for the user;
    `token` identifies this run to the workers.
    """

    fleet: Fleet
    preload: tuple[str, ...] | None = None
    note: Callable[[str], None] = lambda _: None
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    _placement: Placement = field(init=False)
    _waiting: deque[_Task] = field(default_factory=deque, init=False)
    _running: dict[Any, _Task] = field(default_factory=dict, init=False)
    _losses: Counter[str] = field(default_factory=Counter, init=False)
    _news: threading.Event = field(default_factory=threading.Event, init=False)

    def __post_init__(self) -> None:
        self._placement = Placement(self.fleet.workers)

    def run(self, jobs: Sequence[Job], stop: Stop) -> Iterator[Record]:
        """Run jobs on the workers. The jobs of a lost worker run again elsewhere.

        Raises CannotDecide if the scheduler is lost.
        """
        self._look()
        timed = any(job.round for job in jobs)
        self._waiting = deque(_Task(job, group_of(job.cell)) for job in jobs)
        self._placement.settle(
            Counter(task.group for task in self._waiting),
            {task.group: task.job.machine for task in self._waiting if task.job.machine},
        )
        quiet_until = time.monotonic() + QUIET_SECONDS
        while self._waiting or self._running:
            if stop.asked:
                self._waiting.clear()
            if stop.due:
                yield from self._end()
                return
            self._hand_out()
            yield from self._finished()
            if self._running or any(one.times or not timed for one in self.fleet.workers.values()):
                quiet_until = time.monotonic() + QUIET_SECONDS
            elif time.monotonic() > quiet_until:
                what = f"No worker that offers {RESOURCE}" if timed else "No worker"
                self.note(f"{what} is left at the scheduler. Waiting for one: start a worker, or press Ctrl-C to stop.")
                quiet_until = time.monotonic() + QUIET_SECONDS

    def close(self) -> None:
        """Leave the scheduler; its workers stay."""
        self.fleet.close()

    def _look(self) -> None:
        """Update the list of workers."""
        for sentence in self.fleet.look():
            self.note(sentence)
        self._placement.workers = self.fleet.workers

    def _hand_out(self) -> None:
        """Give every free worker a cell, the longest-waiting cells first."""
        busy = Counter(task.address for task in self._running.values())
        strangers = time.monotonic() - self.fleet.shrunk > PATIENCE
        for _ in range(len(self._waiting)):
            task = self._waiting.popleft()
            before = self._placement.kind(task.group)
            address = self._placement.choose(task.group, busy, timed=task.job.round > 0, strangers=strangers)
            if address is None:
                self._waiting.append(task)
                continue
            if self._placement.kind(task.group) != before:
                self.note(
                    f"{task.job.cell.title} and its comparison continue at {address}, a machine of another kind; the "
                    "report keeps the two apart."
                )
            busy[address] += 1
            options: dict[str, Any] = {"resources": {RESOURCE: 1}} if task.job.round else {}
            request = {"job": task.job.model_dump(mode="json"), "preload": self.preload, "token": self.token}
            future = self.fleet.submit(run_job, json.dumps(request), address, **options)
            future.add_done_callback(lambda _: self._news.set())
            self._running[future] = _Task(task.job, task.group, address)

    def _finished(self) -> Iterator[Record]:
        """The jobs that ended, after a short wait at most; jobs of workers that are gone are taken back."""
        self._news.wait(POLL)
        self._news.clear()
        done = [one for one in self._running if one.done()]
        self._look()
        for future, task in list(self._running.items()):
            lost = task.address not in self.fleet.workers
            if not (lost or future in done):
                continue
            del self._running[future]
            record = self.fleet.result(future, task.job) if future in done else None
            if record is None:
                future.cancel()
                yield from self._again(task)
            else:
                yield record

    def _again(self, task: _Task) -> Iterator[Record]:
        """Run a cell again after its worker was lost, a limited number of times."""
        self._losses[task.job.name] += 1
        losses = self._losses[task.job.name]
        if losses <= LOSSES:
            self._waiting.appendleft(task)
            return
        reason = f"{losses} workers were lost while running it"
        yield task.job.record(status="crash", reason=reason)

    def _end(self) -> Iterator[Record]:
        """End everything still running, on the workers too."""
        with contextlib.suppress(CannotDecide):
            self.fleet.tell(stop_on_worker, self.token)
        while self._running:
            future, task = self._running.popitem()
            future.cancel()
            yield task.job.record(status="interrupted", reason=STOPPED)
