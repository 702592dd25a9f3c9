"""Hooks on every module of a model, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def hooked(
    modules: Iterable[nn.Module],
    enter: Callable[..., Any],
    leave: Callable[..., Any],
    *,
    always: bool = False,
) -> Iterator[None]:
    """Call `enter` before and `leave` after the forward of each module; removed whatever happens.

    Args:
        modules: The modules to hook.
        enter: A forward pre-hook.
        leave: A forward hook.
        always: Call `leave` after a forward that raised, too.
    """
    handles = []
    for module in modules:
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=always))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
