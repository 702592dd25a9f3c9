"""Where a request is run: on this machine, or on the workers of a cluster; and what its matrix comes to there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mpsdiag import environment
from mpsdiag.benching.plan.expand import Plan, expand
from mpsdiag.benching.plan.request import Request
from mpsdiag.benching.plan.spec import MatrixSpec
from mpsdiag.benching.run.executor import Executor, LocalExecutor
from mpsdiag.benching.run.isolation import Isolation, StartMethod, start_method
from mpsdiag.benching.run.runner import LOGS


@dataclass(frozen=True)
class Site:
    """This machine, or a cluster.

    Attributes:
        plan: What the whole matrix comes to there.
        executor: Runs jobs there; whoever is done with it closes it.
        versions: Of torch and transformers there; part of every key.
        facts: What the (first) machine is.
        start: How processes are started there.
        machines: How many work side by side.
    """

    plan: Plan
    executor: Executor
    versions: dict[str, str]
    facts: dict[str, Any]
    start: StartMethod
    machines: int = 1


def here(request: Request) -> Site:
    """This machine.

    Raises:
        BadInput: Data or a model path that cannot be used, or too many cells.
    """
    _require_inputs(request.spec)
    plan = expand(request.spec)
    facts = environment.gather().model_dump(exclude_none=True)
    start = start_method(cell.device for cell in plan.cells)
    isolation = request.isolation or Isolation(start)
    executor = LocalExecutor(isolation, facts, request.out / LOGS, request.jobs)
    return Site(plan, executor, environment.versions(), facts, start)


def on_cluster(request: Request, address: str, note: Callable[[str], None]) -> Site:
    """The workers of a dask scheduler.

    Args:
        request: What the user asked for.
        address: Of the scheduler.
        note: Is told what the user should know, then and while it runs.

    Raises:
        BadInput: Too many cells; workers that differ, or of which none may time a cell.
        CannotDecide: No scheduler answers, or it has no workers.
    """
    from mpsdiag.benching.cluster.cluster import ClusterExecutor
    from mpsdiag.benching.cluster.fleet import connect

    fleet = connect(address)
    try:
        if request.spec.rule.rounds:
            fleet.require_timing()
        plan = expand(request.spec, unavailable=fleet.unavailable, resolve=fleet.resolve, files=fleet.files)
    except BaseException:
        fleet.close()
        raise
    preload = None if request.isolation is None else request.isolation.preload
    executor = ClusterExecutor(fleet, preload, told=note)
    start = start_method(cell.device for cell in plan.cells)
    return Site(plan, executor, fleet.versions, fleet.environment, start, len(fleet.workers))


def _require_inputs(spec: MatrixSpec) -> None:
    """Look at models and data before any cell fails over them."""
    from mpsdiag.inputs.data import load_texts
    from mpsdiag.inputs.sources import classify

    for model in spec.axes.model:
        classify("model", model)
    for dataset in dict.fromkeys(one for one in (spec.dataset, spec.eval_dataset) if one is not None):
        load_texts(dataset, limit=1)
