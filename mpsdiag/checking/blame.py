"""Why a scenario came out bad: the same batches traced, so that `check` names the cause and not only the symptom."""

from __future__ import annotations

import math
from contextlib import ExitStack

from mpsdiag.errors import CannotDecide
from mpsdiag.findings import Blame
from mpsdiag.inputs.installed import as_on_mps
from mpsdiag.scenario.preparation import prepare
from mpsdiag.scenario.scenario import LEARNING_RATE, Measured, Scenario
from mpsdiag.tracing.origin import Origin
from mpsdiag.tracing.passes.forward import trace_batches
from mpsdiag.tracing.passes.training import Recipe, trace_training


def blame(case: Scenario, outcome: Measured) -> Blame | None:
    """Build the case anew and trace it: its training where that went wrong, its evaluation otherwise.

    Args:
        case: The scenario.
        outcome: What it gave; nothing is done where that is `ok`.

    Returns:
        The cause; None where the scenario is right, or where its batches come out right when they are traced.
    """
    if outcome.status == "ok":
        return None
    with ExitStack() as stack:
        stack.enter_context(as_on_mps(case.emulation))
        prepared = stack.enter_context(prepare(case))
        try:
            if not all(math.isfinite(loss) for loss in outcome.train_losses):
                recipe = Recipe(LEARNING_RATE)
                origin = trace_training(prepared.model, prepared.train_batches, recipe, steps=case.max_steps).origin
            else:
                origin = trace_batches(prepared.model, prepared.eval_batches).origin
        except CannotDecide:  # The forward fails here too; the outcome says so already.
            return None
    return None if origin is None else _told(origin)


def _told(origin: Origin) -> Blame:
    return Blame(
        cause=origin.cause,
        layer=origin.layer,
        module=origin.module,
        operation=origin.operation,
        summary=origin.summary,
        also=[other.cause for other in origin.also],
        remedy=origin.remedy,
    )
