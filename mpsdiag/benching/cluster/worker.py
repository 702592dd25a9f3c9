"""The work of a dask worker for `mpsdiag bench --cluster`: it runs cells in child processes and describes itself."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from mpsdiag.benching.journal.record import Job
from mpsdiag.benching.plan.this_machine import fingerprint
from mpsdiag.benching.run.interrupt import Stop
from mpsdiag.benching.run.launch import Isolation, start_method
from mpsdiag.scenario.scenario import Scenario
from mpsdiag.serialization import dumps

_stopped: set[str] = set()
"""On a worker: the runs whose user no longer waits."""


def run_job(request: str) -> str:
    """On a worker: run one job in a child process, and answer with how it ended. The answer is a Record as JSON."""
    document = json.loads(request)
    job = Job.model_validate(document["job"])
    isolation = _isolation(start_method([job.cell.device]), tuple(document["preload"] or ()))
    with tempfile.TemporaryDirectory(prefix="mpsdiag-cell-") as folder:
        local = job.model_copy(update={"log": str(Path(folder) / "cell.log")})
        record = isolation.run(local, _WorkerStop(document["token"]))
    return dumps({**record.model_dump(by_alias=True), "environment": describe()["environment"]})


class _WorkerStop(Stop):
    """On a worker: the user's request to stop, passed on by the client."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    @property
    def due(self) -> bool:
        return self._token in _stopped


@functools.cache
def _isolation(start: Any, preload: tuple[str, ...]) -> Isolation:
    """One for the whole life of a worker, whose fork server is started before the first cell's time limit begins."""
    isolation = Isolation(start, preload) if preload else Isolation(start)
    if start == "forkserver":
        with tempfile.TemporaryDirectory(prefix="mpsdiag-start-") as folder:
            isolation.warm_up(Path(folder) / "start.log")
    return isolation


@functools.cache
def _facts() -> dict[str, Any]:
    from mpsdiag import environment

    facts = environment.gather().model_dump(exclude_none=True)
    return {"mpsdiag": facts["mpsdiag"], "versions": environment.versions(), "environment": facts}


def describe(dask_worker: Any = None) -> dict[str, Any]:
    """On a worker: its facts, and what it offers."""
    resources = {} if dask_worker is None else dict(dask_worker.state.total_resources)
    return {**_facts(), "resources": resources}


def answer(question: str, argument: str) -> str | None:
    """On a worker: answer a question about its device or its files."""
    if question == "resolve":
        from mpsdiag.device import resolve

        return resolve(argument)
    if question == "files":
        fingerprint.cache_clear()  # a worker outlives the current content of a file
        return fingerprint(tuple(json.loads(argument)))
    from mpsdiag.benching.plan.this_machine import unavailable

    return unavailable(Scenario.model_validate_json(argument))


def stop_on_worker(token: str) -> None:
    """On a worker: end everything of that run immediately."""
    _stopped.add(token)
