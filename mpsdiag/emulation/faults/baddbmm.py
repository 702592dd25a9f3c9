"""`baddbmm` with beta=0 that multiplies its input by 0 where it should not look at it (SDPA026)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

INTERCEPTED: tuple[Callable[..., Any], ...] = (
    torch.baddbmm,
    torch.Tensor.baddbmm,
    torch.Tensor.baddbmm_,
)


def baddbmm_reading_its_input(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `baddbmm`; with beta=0, NaN and infinities of the input reach the result as NaN.

    Args:
        func: One of `INTERCEPTED`.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    if kwargs.get("beta", 1) != 0:
        return func(*args, **kwargs)
    before = args[0] if args else kwargs["input"]
    spoilt = before.clone() if func is torch.Tensor.baddbmm_ else before
    result = func(*args, **kwargs)
    zeros = spoilt.detach().to(result.dtype) * 0
    return result.add_(zeros) if func is torch.Tensor.baddbmm_ or "out" in kwargs else result + zeros
