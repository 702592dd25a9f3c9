"""`mpsdiag.trace`: where the first non-finite value of a model on a batch comes from, and why."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from torch import nn

from mpsdiag.errors import BadInput
from mpsdiag.tracing.origin import Origin
from mpsdiag.tracing.passes.forward import ForwardTrace
from mpsdiag.tracing.passes.model_inputs import prepare_batch
from mpsdiag.tracing.passes.training import trace_training
from mpsdiag.tracing.watch.model_state import in_mode


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
        BadInput: Not a model, or the batch does not fit it.
        CannotDecide: The forward itself fails.
    """
    _require_module(model)
    model = getattr(model, "_orig_mod", model)  # The graph of torch.compile hides its operations.
    prepared = prepare_batch(model, batch)
    if train:
        return trace_training(model, [prepared]).origin
    with in_mode(model, training=False, grad=False):
        return ForwardTrace(model, compare=compare).run(prepared).origin


def _require_module(model: object) -> None:
    if isinstance(model, nn.Module):
        return
    if model is None or isinstance(model, str | PathLike):
        name = "FOLDER" if model is None else str(model)
        raise BadInput(
            f"model is {model!r}, not a loaded model. Load it first (AutoModelForCausalLM.from_pretrained), or use the "
            f"command: mpsdiag trace --model {name}."
        )
    raise BadInput(f"model is a {type(model).__name__}, not a torch.nn.Module. Give the loaded model itself.")
