"""`mpsdiag.trace`: where the first non-finite value of a model on a batch is born, and of which kind it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mpsdiag.diagnosis.tracing.batch import prepare_batch
from mpsdiag.diagnosis.tracing.compare import find_difference
from mpsdiag.diagnosis.tracing.forward import ForwardTrace, Traced
from mpsdiag.diagnosis.tracing.origin import Origin
from mpsdiag.diagnosis.tracing.place import is_plain_cpu
from mpsdiag.diagnosis.tracing.training import trace_training


def trace(
    model: nn.Module, batch: Mapping[str, Any], *, train: bool = False, compare: bool | None = None
) -> Origin | None:
    """Find the first non-finite value of an evaluation of one batch; or, if all are finite, where they go wrong.

    The model is run as it is, on its device, in evaluation mode without gradients (unless `train`), and left as it was.

    Args:
        model: A transformers model, or any module that takes the batch as keyword arguments.
        batch: Such as `input_ids`, `attention_mask`, `labels`, each (sequences, positions); moved to its device.
        train: Trace a training step instead: forward with gradients, backward, AdamW. The weights are put back.
        compare: Compare finite results with float64 on the CPU. None: unless the model runs on a plain CPU itself.

    Returns:
        Where, in which operation and why; None if everything is finite, and as right as the CPU where compared.

    Raises:
        BadInput: The batch does not fit the model.
        CannotDecide: The forward itself fails.
    """
    model = getattr(model, "_orig_mod", model)  # The graph of torch.compile hides its operations.
    prepared = prepare_batch(model, batch)
    if train:
        return trace_training(model, [prepared]).origin
    with ForwardTrace(model).ready() as forward:
        return trace_evaluation(forward, model, prepared, compare=compare).origin


def trace_evaluation(
    forward: ForwardTrace,
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    compare: bool | None = None,
    in_detail: bool = True,
) -> Traced:
    """As `trace`, for a batch that is prepared; with its loss, and the call that is to blame.

    Args:
        forward: Ready.
        model: The same model, on its device.
        batch: Prepared.
        compare: As for `trace`.
        in_detail: Look for the origin; without it only whether there is one.

    Raises:
        CannotDecide: The forward itself fails.
    """
    traced = forward.run(batch, in_detail=in_detail)
    if in_detail and traced.origin is None and (not is_plain_cpu(model) if compare is None else compare):
        with forward.looking_away():
            found = find_difference(model, batch)
        if found is not None:
            return Traced(traced.loss, *found, suspicious=True)
    return traced
