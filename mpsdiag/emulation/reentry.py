"""Keep the emulation in effect inside torch functions that run Python code: backward passes and nested attention.

torch suspends a mode while a function that the mode intercepts runs. Without this module, a checkpointed layer that is
recomputed in `loss.backward()` would use the CPU's own kernels: other values than before, and with non-reentrant
checkpointing another number of saved tensors, which torch refuses. So would the attention inside
`F.multi_head_attention_forward`, which `nn.MultiheadAttention` and torch's transformer layers use.

Their fast paths (`torch._native_multi_head_attention`, `torch._transformer_encoder_layer_fwd`) are taken on CPU, CUDA
and XPU only, by a list of devices in `nn.MultiheadAttention` and `nn.TransformerEncoderLayer`: on MPS the layers
always call `F.scaled_dot_product_attention`. Nothing needs to be done about that here: the layers do not take their
fast path while any function mode is active, because `torch.overrides.has_torch_function` is then true.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FunctionType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

RUNNING: frozenset[Any] = frozenset({torch.Tensor.backward, torch.autograd.backward, torch.autograd.grad})
"""The functions that run a backward pass."""

_ENGINE = "_engine_run_backward"  # all of them end here; it has no public name
_ATTENTION = "scaled_dot_product_attention"
_ASK = "has_torch_function"


_inside: ContextVar[tuple[FunctionType, ...]] = ContextVar("_inside", default=())


def calls_attention(func: Callable[..., Any]) -> bool:
    """Whether a torch function is Python code that names `scaled_dot_product_attention`, and is not running yet."""
    named = isinstance(func, FunctionType) and _ATTENTION in func.__code__.co_names
    return named and func not in _inside.get()


def with_mode(mode: TorchFunctionMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a torch function's code with a mode in effect for what it calls.

    Such a function first asks whether a mode intercepts it; here a copy of its code runs that does not ask. Names are
    looked up now, so an installed fix is called, as it would be otherwise.
    """
    asks = [name for name in func.__code__.co_names if name.startswith(_ASK)]
    names = func.__globals__ | dict.fromkeys(asks, lambda *_: False)
    code = FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    code.__kwdefaults__ = func.__kwdefaults__
    token = _inside.set((*_inside.get(), func))  # a function that asks in another way ends here
    try:
        with mode:
            return code(*args, **kwargs)
    finally:
        _inside.reset(token)


@contextmanager
def kept_through(mode: TorchFunctionMode) -> Iterator[None]:
    """Let backward passes that start inside run with a mode in effect that has been set aside."""
    engine: Callable[..., Any] | None = getattr(torch.autograd, _ENGINE, None)
    if engine is None:
        yield
        return

    def run(*args: Any, **kwargs: Any) -> Any:
        # For this pass only: one started inside it finds the mode itself.
        setattr(torch.autograd, _ENGINE, engine)
        with mode:
            return engine(*args, **kwargs)

    setattr(torch.autograd, _ENGINE, run)
    try:
        yield
    finally:
        setattr(torch.autograd, _ENGINE, engine)
