"""`mpsdiag.trace`: where the first non-finite value of a model on a batch is born, and of which kind it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mpsdiag.diagnosis.tracing.batch import prepare_batch
from mpsdiag.diagnosis.tracing.forward import ForwardTrace
from mpsdiag.diagnosis.tracing.origin import Origin
from mpsdiag.diagnosis.tracing.repeat import in_mode
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
    with in_mode(model, training=False, grad=False):
        return ForwardTrace(model, compare=compare).run(prepared).origin
