"""Keep the emulation in effect while gradients are computed, where checkpointed layers run their forward again.

`loss.backward()` is itself a torch function. A mode is set aside while such a function runs, so without this
a recomputed forward would meet the CPU's own kernels: other values than before, and with non-reentrant
checkpointing another number of saved tensors, which torch refuses.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.overrides import TorchFunctionMode

RUNNING: frozenset[Any] = frozenset({torch.Tensor.backward, torch.autograd.backward, torch.autograd.grad})
"""The functions that run a backward pass."""

_ENGINE = "_engine_run_backward"  # what all of them end in; no public name


@contextmanager
def kept_through(mode: TorchFunctionMode) -> Iterator[None]:
    """Let backward passes that start inside run with a mode in effect.

    Args:
        mode: The mode that has been set aside.
    """
    engine: Callable[..., Any] | None = getattr(torch.autograd, _ENGINE, None)
    if engine is None:
        yield
        return

    def run(*args: Any, **kwargs: Any) -> Any:
        setattr(
            torch.autograd, _ENGINE, engine
        )  # for this pass only: one started inside it finds the mode itself
        with mode:
            return engine(*args, **kwargs)

    setattr(torch.autograd, _ENGINE, run)
    try:
        yield
    finally:
        setattr(torch.autograd, _ENGINE, engine)
