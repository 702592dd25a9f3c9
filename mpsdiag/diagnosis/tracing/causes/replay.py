"""Run one operation again on the CPU, in its own dtype or in float64, with the inputs it had."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from mpsdiag.diagnosis.tracing.events import Call
from mpsdiag.diagnosis.tracing.tensors import mapped, tensors_in
from mpsdiag.emulation import suspended


def replay(call: Call, dtype: torch.dtype | None = None) -> Tensor | None:
    """The first floating tensor of the operation's result on the plain CPU; None if it cannot be run there.

    Args:
        call: The operation and its arguments.
        dtype: Floating tensors and floating dtypes among the arguments become this; kept as they are if None.
    """
    with suspended(), torch.no_grad():
        try:
            moved = partial(_moved, dtype=dtype)
            result = call.func(*mapped(call.args, moved), **mapped(dict(call.kwargs), moved))
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            return None
        if result is None and call.args:
            result = call.args[0]
        return next((t for _, t in tensors_in(result) if t.is_floating_point()), None)


def _moved(value: Any, dtype: torch.dtype | None) -> Any:
    if isinstance(value, Tensor):
        # A clone: the operation may write into its argument.
        moved = value.detach().to("cpu", copy=True)
        return moved.to(dtype) if dtype is not None and moved.is_floating_point() else moved
    if isinstance(value, torch.device):
        return torch.device("cpu")
    if isinstance(value, torch.dtype) and dtype is not None and value.is_floating_point:
        return dtype
    return value
