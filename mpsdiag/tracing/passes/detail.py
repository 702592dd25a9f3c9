"""A forward in detail, again and again: each time with the faults found so far made finite, until none is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mpsdiag.errors import CannotDecide, first_line
from mpsdiag.tracing.causes import Candidate, Explanation, explain
from mpsdiag.tracing.origin import Origin, Phase
from mpsdiag.tracing.watch.chain import first_terminal
from mpsdiag.tracing.watch.events import Call, Pass
from mpsdiag.tracing.watch.patched_rerun import Healing
from mpsdiag.tracing.watch.repeat import Repeat
from mpsdiag.tracing.watch.tensors import bad_rows, facts
from mpsdiag.tracing.watch.tracer import Tracer

ROUNDS = 8
"""At most this many faults behind each other are brought to light."""


def explain_forward(
    model: nn.Module, batch: Mapping[str, Any], repeat: Repeat
) -> tuple[Origin | None, Call | None]:
    """Run a batch in detail, as often as faults come to light; the modes are those in effect.

    Args:
        model: As it was when the forward was not finite.
        batch: The same.
        repeat: Taken before that forward.

    Returns:
        The first origin with the others in `also`, and the call it was born in; None if all came out finite.

    Raises:
        CannotDecide: The forward fails with something else than an index out of range.
    """
    origins: list[Origin] = []
    first_call: Call | None = None
    healing = Healing()
    for _ in range(ROUNDS):
        seen = _detailed_pass(model, batch, repeat, healing)
        terminal = first_terminal(seen)
        if terminal is None:
            break
        birth = Candidate(terminal, batch, model, grad=torch.is_grad_enabled())
        first_call = first_call if origins else birth.call
        spread = [] if origins else seen.spread
        explanations = explain(birth)
        for explanation in explanations:
            if explanation.cause not in {origin.cause for origin in origins}:
                origins.append(_origin(birth, explanation, spread))
        if terminal.kind == "error":
            break
        healing = healing.behind(terminal, {explanation.cause for explanation in explanations})
    if not origins:
        return None, None
    return origins[0].model_copy(update={"also": origins[1:]}), first_call


def _detailed_pass(model: nn.Module, batch: Mapping[str, Any], repeat: Repeat, healing: Healing) -> Pass:
    """One detailed pass; an index out of range ends it and is its last event."""
    repeat.again()
    tracer = Tracer(model, batch, healing)
    try:
        with tracer.watching():
            model(**batch)
    except IndexError:
        if not tracer.seen.events or tracer.seen.events[-1].error is None:
            raise
    except RuntimeError as problem:
        raise CannotDecide(failed(problem)) from problem
    return tracer.seen


def _origin(birth: Candidate, explanation: Explanation, spread: list[dict[str, Any]]) -> Origin:
    event = birth.event
    phase: Phase = "data" if explanation.cause in ("bad_inputs", "no_labels") else "forward"
    evidence = dict(explanation.evidence)
    output = birth.output
    if output is not None:
        evidence["output"] = facts(output, event.operation) | {"non_finite": bad_rows(output)}
    if birth.inputs:
        evidence["inputs"] = [facts(tensor, name) for name, tensor in birth.inputs]
    if spread:
        evidence["spread"] = spread
    return Origin(
        cause=explanation.cause,
        layer=event.layer,
        module=event.module,
        operation=event.operation,
        phase=phase,
        summary=explanation.summary,
        evidence=evidence,
        remedy=explanation.remedy,
    )


def failed(problem: BaseException) -> str:
    """One sentence for a forward that raises."""
    return f"The forward itself fails, so nothing can be traced: {first_line(problem, 300)}."
