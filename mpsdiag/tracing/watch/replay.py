"""What a call should have given: run again on the CPU with the inputs it had, in its own dtype or in float64."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from mpsdiag.emulation import suspended
from mpsdiag.sdpa import reference_attention
from mpsdiag.tracing.watch.events import Call
from mpsdiag.tracing.watch.operations import SDPA
from mpsdiag.tracing.watch.tensors import mapped, tensors_in


def run(call: Call) -> Tensor | None:
    """The first floating tensor that a call gives, or writes into; None if there is none, or if it raises.

    Args:
        call: Run as it is, under what is in effect.
    """
    try:
        result = call.func(*call.args, **call.kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None
    if result is None and call.args:  # As `__setitem__`.
        result = call.args[0]
    return next((t for _, t in tensors_in(result) if t.is_floating_point()), None)


def replay(call: Call, dtype: torch.dtype | None = None) -> Tensor | None:
    """The first floating tensor of the operation's result on the plain CPU; None if it cannot be run there.

    Args:
        call: The operation and its arguments.
        dtype: Floating tensors and floating dtypes among the arguments become this; kept as they are if None.
    """
    moved = partial(_moved, dtype=dtype)
    with suspended(), torch.no_grad():
        return run(Call(call.func, mapped(call.args, moved), mapped(dict(call.kwargs), moved)))


def in_float64(call: Call) -> Tensor | None:
    """The result in float64; attention from its definition, not from another kernel of torch.

    Args:
        call: The operation and its arguments.
    """
    if call.operation != SDPA:
        return replay(call, torch.float64)
    named = call.named
    return reference_attention(
        named["query"],
        named["key"],
        named["value"],
        named.get("attn_mask"),
        bool(named.get("is_causal", False)),
        named.get("scale"),
        bool(named.get("enable_gqa", False)),
    )


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
