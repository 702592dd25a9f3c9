"""An evaluation of several batches: each cheaply, the first bad ones in detail, and what the Trainer would print."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mpsdiag.findings import Advice
from mpsdiag.inputs.installed import stock_mean
from mpsdiag.inputs.outputs import mean
from mpsdiag.tracing.origin import Origin, joined
from mpsdiag.tracing.passes.forward import ForwardTrace, TracedRun
from mpsdiag.tracing.watch.model_state import in_mode

EXPLAINED = 4
"""At most this many bad batches are looked at in detail: another batch may be bad for another reason."""


def trace_batches(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    *,
    compare: bool | None = None,
    grad: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> TracedRun:
    """Trace an evaluation. The origin is that of the first bad batch; those with other causes are in its `also`."""
    found, origins = TracedRun(), list[Origin]()
    forward, came_to_loss = ForwardTrace(model, compare=compare), True
    with in_mode(model, training=False, grad=grad):
        for number, batch in enumerate(batches):
            progress(f"batch {number + 1} of {len(batches)}")
            traced = forward.run(batch, in_detail=len(found.bad) < EXPLAINED)
            came_to_loss = came_to_loss and traced.loss is not None
            found.losses.append(math.nan if traced.loss is None else traced.loss)
            if traced.bad:
                found.bad.append(number)
            if traced.origin is not None:
                found.call = found.call if origins else traced.call
                for origin in (traced.origin, *traced.origin.also):
                    alone = {"also": [], "evidence": {"batch": number, **origin.evidence}}
                    origins.append(origin.model_copy(update=alone))
    # Where a forward raises no Trainer comes to a mean, and leaves nothing out of one.
    if came_to_loss and any("labels" in batch for batch in batches):
        sizes = [_sequences(batch) for batch in batches]
        found.eval_loss = mean(found.losses, sizes)
        found.stock_eval_loss = stock_mean(found.losses, sizes)
        origins += _hidden_by_filter(found)
    found.origin = joined(origins)
    return found


def _hidden_by_filter(found: TracedRun) -> list[Origin]:
    """The eval_loss that is printed is finite only because batches are left out of it."""
    dropped = [number for number, loss in enumerate(found.losses) if not math.isfinite(loss)]
    if not dropped or found.stock_eval_loss is None or not math.isfinite(found.stock_eval_loss):
        return []
    hidden = Origin(
        cause="hidden_by_filter",
        operation="evaluation_loop",
        phase="evaluation",
        summary=f"transformers prints eval_loss {found.stock_eval_loss:.4f} here: {len(dropped)} of "
        f"{len(found.losses)} batches have a loss that is not finite, and logging_nan_inf_filter leaves them out",
        evidence={
            "stock_eval_loss": found.stock_eval_loss,
            "eval_loss": found.eval_loss,
            "dropped_batches": dropped,
            "batches": len(found.losses),
        },
        remedy=Advice(
            text="Turn the filter off while you look for the cause; it hides a bias, not only a warning.",
            commands=["TrainingArguments(logging_nan_inf_filter=False)"],
        ),
    )
    return [hidden]


def _sequences(batch: Mapping[str, Any]) -> int:
    """How many sequences a batch has."""
    sizes = (int(value.shape[0]) for value in batch.values() if isinstance(value, Tensor) and value.dim())
    return next(sizes, 1)
