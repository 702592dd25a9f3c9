"""The workers of a dask scheduler: which there are, their facts, and how to call them. All code that touches dask."""

import contextlib
import importlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mpsdiag.benching.cluster.placement import Worker
from mpsdiag.benching.cluster.worker import answer, describe
from mpsdiag.benching.journal.pooling import kind
from mpsdiag.benching.journal.record import Job, Record
from mpsdiag.errors import BadInput, CannotDecide
from mpsdiag.scenario.scenario import Scenario

RESOURCE = "MPS"
CONNECT_SECONDS = 20.0
ANSWER_SECONDS = 60.0


@dataclass
class Fleet:
    """A scheduler at an address, and its workers, in a stable order: kind of machine, then address.

    `facts` are what each worker reported, `workers` the same for `Placement`; `shrunk` is when a worker was last
    missed, by the monotonic clock.
    """

    address: str
    client: Any
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    shrunk: float = 0.0
    _refused: set[str] = field(default_factory=set, init=False)

    @property
    def first(self) -> dict[str, Any]:
        """The first worker: its `environment`, and the `versions` for the keys of the cells."""
        return next(iter(self.facts.values()))

    def look(self) -> list[str]:
        """Update the workers that came and went; sentences about those that cannot take part.

        Raises CannotDecide if the scheduler is lost.
        """
        with self._reached():
            threads = dict(self.client.nthreads())
        gone, new = self.workers.keys() - threads, threads.keys() - self.workers.keys() - self._refused
        if gone:
            self.shrunk = time.monotonic()
            self.workers = {one: worker for one, worker in self.workers.items() if one not in gone}
        if not new:
            return []
        with self._reached():
            answers = self.client.run(describe, workers=sorted(new), on_error="return")
        sentences = []
        for address, facts in answers.items():
            sentence = self._objection(address, facts)
            if sentence is not None:
                self._refused.add(address)
                sentences.append(sentence)
                continue
            self.facts[address] = facts
            times = facts["resources"].get(RESOURCE, 0) >= 1
            self.workers[address] = Worker(kind(facts["environment"]), threads[address], times=times)
        self.workers = dict(sorted(self.workers.items(), key=lambda item: (item[1].kind, item[0])))
        return sentences

    def resolve(self, device: str) -> str:
        """The device that a name means on the workers. Raises BadInput if they differ."""
        answers = self._ask("resolve", device)
        if len(set(answers.values())) > 1:
            words = ", ".join(f"{word} on {address}" for address, word in sorted(answers.items()))
            raise BadInput(f"The workers disagree about --device {device}: {words}. Name one that all of them have.")
        return str(next(iter(answers.values())))

    def unavailable(self, cell: Scenario) -> str | None:
        """Why a cell cannot run on some worker, or None if it can run on all."""
        reasons = self._ask("unavailable", cell.model_dump_json()).values()
        return next((str(reason) for reason in reasons if reason is not None), None)

    def files(self, names: tuple[str, ...]) -> str | None:
        """A fingerprint of local files of the workers. Raises BadInput if they differ."""
        found, *others = self._ask("files", json.dumps(names)).values()
        if {found} != {found, *others}:
            raise BadInput(
                f"The files of {', '.join(names)} differ between the workers of {self.address}. Copy them again."
            )
        return None if found is None else str(found)

    def submit(self, function: Callable[..., Any], request: str, address: str, **options: Any) -> Any:
        """Have one worker call a function; a future. Raises CannotDecide if the scheduler is lost."""
        with self._reached():
            return self.client.submit(
                function, request, workers=[address], pure=False, key=f"mpsdiag-{uuid.uuid4().hex}", **options
            )

    def result(self, future: Any, job: Job) -> Record | None:
        """How a job ended; None if its worker was lost before the answer arrived."""
        if future.status in {"cancelled", "lost"}:
            return None
        try:
            return Record.model_validate_json(future.result(timeout=ANSWER_SECONDS))
        except (TimeoutError, OSError):
            return None
        except Exception as problem:  # noqa: BLE001 - whatever the worker met is this cell's end
            reason = f"the worker could not run it ({type(problem).__name__}: {problem})"[:500]
            return job.record(status="crash", reason=reason)

    def tell(self, function: Callable[..., Any], argument: str) -> None:
        """Call a function on every worker, at once. Raises CannotDecide if the scheduler is lost."""
        with self._reached():
            self.client.run(function, argument, on_error="ignore")

    def require_timing(self) -> None:
        """Make sure, before hours of verdicts, that cells can be timed. Raises BadInput if no worker offers it."""
        if not any(one.times for one in self.workers.values()):
            raise BadInput(
                f"No worker offers the resource {RESOURCE}, so nothing can be timed. Start the workers with "
                f'--resources "{RESOURCE}=1" (one timed cell at a time), or give --rounds 0.'
            )

    def close(self) -> None:
        """Leave the scheduler; its workers stay."""
        with contextlib.suppress(Exception):  # it may be gone
            self.client.close()

    def _ask(self, question: str, argument: str) -> dict[str, Any]:
        """Ask every worker, in its own thread: the answer may need an import of torch."""
        with self._reached():
            futures = {
                one: self.client.submit(answer, question, argument, workers=[one], pure=False) for one in self.workers
            }
            return {one: future.result() for one, future in futures.items()}

    def _objection(self, address: str, facts: Any) -> str | None:
        """Why a worker cannot take part, if it cannot."""
        if isinstance(facts, BaseException):
            return f"A worker of {self.address} cannot run mpsdiag ({facts}). Install the same mpsdiag on all of them."
        ours, theirs = ([one["mpsdiag"], one["versions"]] for one in (self.first if self.facts else facts, facts))
        if ours == theirs:
            return None
        return (
            f"The workers of {self.address} differ in their versions: {json.dumps(ours)}, but {json.dumps(theirs)} at "
            f"{address}. Install the same versions on all."
        )

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Raise one sentence about a lost scheduler."""
        try:
            yield
        except (OSError, TimeoutError, RuntimeError) as problem:
            raise CannotDecide(
                f"The scheduler at {self.address} is lost ({type(problem).__name__}). Finished rounds are in the "
                "journal; start the scheduler again, and run the same command to resume."
            ) from problem


def connect(address: str) -> Fleet:
    """Connect to a scheduler and query its workers.

    Raises BadInput without dask.distributed, or if the workers differ in versions; CannotDecide if no scheduler
    answers, or it has no workers.
    """
    try:
        distributed = importlib.import_module("distributed")
    except ImportError as problem:
        raise BadInput("--cluster needs dask.distributed: pip install 'mpsdiag[cluster]'.") from problem
    for name in ("distributed.client", "distributed.core", "distributed.comm"):
        # They warn of a lost scheduler, which we report in one sentence.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as problem:
        raise CannotDecide(f"No dask scheduler answers at {address}: {problem}") from problem
    fleet = Fleet(address, client)
    with contextlib.ExitStack() as undo:
        undo.callback(fleet.close)
        objections = fleet.look()
        if objections:
            raise BadInput(objections[0])
        if not fleet.workers:
            raise CannotDecide(f"The scheduler at {address} has no workers. Start some: see docs/fleet.md.")
        undo.pop_all()
    return fleet
