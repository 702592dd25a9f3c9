"""Who runs the jobs: this machine, one at a time for timings, or several at once where nothing is timed."""

from __future__ import annotations

import concurrent.futures
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mpsdiag.benching.run.interrupt import Stop
from mpsdiag.benching.run.isolation import Isolation
from mpsdiag.benching.run.job import Ended, Job
from mpsdiag.errors import CannotDecide


class Executor(Protocol):
    """Runs jobs and hands each out as it ends."""

    def run(self, jobs: Sequence[Job], stop: Stop) -> Iterator[tuple[Job, Ended]]:
        """Run jobs; no further one is begun before the last one handed out was taken, nor once asked to stop."""

    def close(self) -> None:
        """Let go of what it holds."""


@dataclass
class LocalExecutor:
    """Runs jobs on this machine, each in a process of its own.

    Attributes:
        isolation: How.
        environment: What this machine is; goes into every record.
        logs: Folder for the log of the fork server.
        jobs: How many at once, where nothing is timed.
    """

    isolation: Isolation
    environment: dict[str, Any] = field(default_factory=dict)
    logs: Path = Path()
    jobs: int = 1
    _ready: bool = field(default=False, init=False)

    def run(self, jobs: Sequence[Job], stop: Stop) -> Iterator[tuple[Job, Ended]]:
        """See `Executor`.

        Raises:
            CannotDecide: Not even an empty process can be started here.
        """
        if not jobs:
            return
        self._prepare(stop)
        together = 1 if any(job.round for job in jobs) else self.jobs
        if together == 1:
            for job in jobs:
                if stop.asked:
                    return
                yield job, self._run(job, stop)
            return
        yield from self._run_together(jobs, stop, together)

    def close(self) -> None:
        """Nothing is held: a fork server ends with this process."""

    def _run_together(self, jobs: Sequence[Job], stop: Stop, together: int) -> Iterator[tuple[Job, Ended]]:
        waiting = iter(() if stop.asked else jobs)
        with concurrent.futures.ThreadPoolExecutor(together, thread_name_prefix="cell") as threads:
            running = {
                threads.submit(self._run, job, stop): job for job in itertools.islice(waiting, together)
            }
            while running:
                done, _ = concurrent.futures.wait(
                    running, timeout=0.1, return_when=concurrent.futures.FIRST_COMPLETED
                )
                for future in done:
                    yield running.pop(future), future.result()
                    job = None if stop.asked else next(waiting, None)
                    if job is not None:
                        running[threads.submit(self._run, job, stop)] = job

    def _run(self, job: Job, stop: Stop) -> Ended:
        return self.isolation.run(job, stop).model_copy(update={"environment": self.environment})

    def _prepare(self, stop: Stop) -> None:
        """Start the fork server before the first cell, so that no cell pays for its imports."""
        if self._ready or stop.asked:
            return
        if self.isolation.start == "forkserver":
            ended = self.isolation.warm_up(self.logs / "start.log", stop)
            if ended.status == "interrupted":
                return
            if ended.status != "ok":
                raise CannotDecide(
                    f"No process can be started here: {ended.reason}. The log is {self.logs / 'start.log'}."
                )
        self._ready = True
