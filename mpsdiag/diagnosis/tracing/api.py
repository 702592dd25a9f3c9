"""`mpsdiag.trace`: where the first non-finite value of a model on a batch is born, and of which kind it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mpsdiag.diagnosis.tracing.batch import prepare_batch
from mpsdiag.diagnosis.tracing.forward import trace_forward
from mpsdiag.diagnosis.tracing.origin import Origin


def trace(model: nn.Module, batch: Mapping[str, Any]) -> Origin | None:
    """Find the first non-finite value of an evaluation of one batch.

    The model is run as it is, on its device, in evaluation mode without gradients, and left as it was.

    Args:
        model: A transformers model, or any module that takes the batch as keyword arguments.
        batch: Such as `input_ids`, `attention_mask`, `labels`, each (sequences, positions); moved to its device.

    Returns:
        Where, in which operation and why; None if everything is finite.

    Raises:
        BadInput: The batch does not fit the model.
        CannotDecide: The forward itself fails.
    """
    return trace_forward(model, prepare_batch(model, batch)).origin
