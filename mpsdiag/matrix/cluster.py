"""A matrix on several machines: dask.distributed hands out cells, every cell still runs in a child of its worker.

Workers say what they can carry: `dask worker ... --resources "MPS=1"` takes one timed cell at a time. JSON text goes
over the wire, wrapped in dask's own pickles: trust the scheduler's network, or use dask's TLS. See docs/fleet.md.
"""

from __future__ import annotations

import importlib
import json
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mpsdiag.errors import BadInput, CannotDecide
from mpsdiag.matrix.interrupt import Stop
from mpsdiag.matrix.job import Ended, Job, utc_now
from mpsdiag.matrix.record import Cell
from mpsdiag.matrix.rounds import group_of
from mpsdiag.matrix.worker import answer, describe, run_job, stop_on_worker

RESOURCE = "MPS"
POLL = 0.2
CONNECT_SECONDS = 20.0
QUIET_SECONDS = 30.0


@dataclass
class ClusterExecutor:
    """Runs jobs on the workers of a dask scheduler; see `mpsdiag.matrix.executor.Executor`.

    Attributes:
        client: Connected to the scheduler.
        workers: What each worker is, by address.
        preload: For the workers' fork servers; their own choice if None.
        told: Is told when no worker is left.
    """

    client: Any
    workers: dict[str, dict[str, Any]]
    preload: tuple[str, ...] | None = None
    told: Callable[[str], None] = lambda _: None
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    _news: threading.Event = field(default_factory=threading.Event, init=False)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of torch and transformers on the workers, for the keys of the cells."""
        return dict(next(iter(self.workers.values()))["versions"])

    @property
    def environment(self) -> dict[str, Any]:
        """What the first worker is."""
        return dict(next(iter(self.workers.values()))["environment"])

    def resolve(self, device: str) -> str:
        """Which device a word means on the workers."""
        return str(self._ask("resolve", device))

    def unavailable(self, cell: Cell) -> str | None:
        """Why a cell cannot run on the workers, or None if it can."""
        answer = self._ask("unavailable", cell.model_dump_json())
        return None if answer is None else str(answer)

    def run(self, jobs: Sequence[Job], stop: Stop) -> Iterator[tuple[Job, Ended]]:
        """Run jobs on the workers. What a lost worker was running runs again elsewhere.

        Raises:
            BadInput: Cells are to be timed, and no worker offers the resource for it.
        """
        timed = any(job.round for job in jobs)
        places = self._places(timed=timed)
        futures = {self._submit(job, places): job for job in jobs}
        quiet = 0.0
        ending = False
        while futures:
            done = self._finished(list(futures))
            for future in done:
                job = futures.pop(future)
                ended = _ended(future)
                if ended is not None:
                    yield job, ended
            if stop.asked and not ending:
                ending = True
                self._forget_waiting(futures)
            if stop.due:
                yield from self._end(futures)
                return
            quiet = 0.0 if done or self.client.nthreads() else quiet + POLL
            if quiet >= QUIET_SECONDS:
                self.told("No worker is left at the scheduler; waiting for one (Ctrl-C stops).")
                quiet = 0.0

    def close(self) -> None:
        """Leave the scheduler; its workers stay."""
        self.client.close()

    def _ask(self, question: str, argument: str) -> Any:
        return self.client.submit(answer, question, argument, pure=False).result()

    def _places(self, *, timed: bool) -> list[str]:
        if not timed:
            return []
        offering = [
            address for address, one in self.workers.items() if one["resources"].get(RESOURCE, 0) >= 1
        ]
        if not offering:
            raise BadInput(
                f"No worker offers the resource {RESOURCE}, so nothing can be timed. Start the workers with "
                f'--resources "{RESOURCE}=1" (one timed cell at a time), or give --rounds 0.'
            )
        return offering

    def _submit(self, job: Job, places: Sequence[str]) -> Any:
        """Hand a job in. Cells that are compared go to the same machine; to another one only if that is lost."""
        options: dict[str, Any] = {"pure": False, "key": f"mpsdiag-{job.name}-{uuid.uuid4().hex[:8]}"}
        if places:
            group = int(group_of(job.cell).key({})[:8], 16)
            options["resources"] = {RESOURCE: 1}
            options["workers"] = [places[group % len(places)]]
            options["allow_other_workers"] = True
        request = json.dumps(
            {"job": job.model_dump(mode="json"), "preload": self.preload, "token": self.token}
        )
        future = self.client.submit(run_job, request, **options)
        future.add_done_callback(lambda _: self._news.set())
        return future

    def _finished(self, futures: list[Any]) -> list[Any]:
        """Those that ended, after a moment at most."""
        self._news.wait(POLL)
        self._news.clear()
        return [future for future in futures if future.done()]

    def _forget_waiting(self, futures: dict[Any, Job]) -> None:
        """Take back what no worker has begun."""
        running = {key for keys in self.client.processing().values() for key in keys}
        for future in [one for one in futures if one.key not in running]:
            del futures[future]
            future.cancel()

    def _end(self, futures: dict[Any, Job]) -> Iterator[tuple[Job, Ended]]:
        """End what still runs, also on the workers."""
        self.client.run(stop_on_worker, self.token)
        for future, job in futures.items():
            future.cancel()
            reason = "stopped by the user before it finished"
            yield job, Ended(status="interrupted", reason=reason, started=utc_now(), seconds=0.0)


def connect(address: str, *, told: Callable[[str], None] = lambda _: None) -> ClusterExecutor:
    """Connect to a scheduler and get to know its workers.

    Args:
        address: Such as `tcp://10.0.0.5:8786` or `tls://...`.
        told: Is told what the user should know.

    Raises:
        BadInput: dask.distributed is not installed, or the workers differ in versions.
        CannotDecide: No scheduler answers, or it has no workers.
    """
    distributed = _distributed()
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as problem:
        raise CannotDecide(f"No dask scheduler answers at {address}: {problem}") from problem
    workers = client.run(describe, on_error="return")
    broken = next((one for one in workers.values() if isinstance(one, BaseException)), None)
    if broken is not None:
        client.close()
        raise BadInput(
            f"A worker of {address} cannot run mpsdiag ({broken}). Install the same mpsdiag on all of them."
        )
    if not workers:
        client.close()
        raise CannotDecide(f"The scheduler at {address} has no workers. Start some: see docs/fleet.md.")
    kinds = {json.dumps([one["mpsdiag"], one["versions"]], sort_keys=True) for one in workers.values()}
    if len(kinds) > 1:
        client.close()
        raise BadInput(
            f"The workers of {address} differ in their versions: {'; '.join(sorted(kinds))}. Install the same on all."
        )
    return ClusterExecutor(client, workers, told=told)


def _distributed() -> Any:
    try:
        return importlib.import_module("distributed")
    except ImportError as problem:
        raise BadInput("--cluster needs dask.distributed: pip install 'mpsdiag[cluster]'.") from problem


def _ended(future: Any) -> Ended | None:
    """How a job ended; None if it was taken back."""
    if future.cancelled():
        return None
    try:
        return Ended.model_validate_json(future.result())
    except Exception as problem:  # noqa: BLE001 - whatever the cluster met is this cell's end
        return Ended(
            status="crash",
            reason=f"the workers that ran it were lost ({type(problem).__name__}: {problem})"[:500],
            started=utc_now(),
            seconds=0.0,
        )
