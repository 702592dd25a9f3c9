"""Keep the emulation in effect inside torch functions that run Python code: backward passes, and attention in others.

A mode is set aside while a function that it was asked about runs. Without this a checkpointed layer that is
recomputed in `loss.backward()` would meet the CPU's own kernels: other values than before, and with non-reentrant
checkpointing another number of saved tensors, which torch refuses. So would the attention inside
`F.multi_head_attention_forward`, which is that of `nn.MultiheadAttention` and of torch's transformer layers.

Their fast paths (`torch._native_multi_head_attention`, `torch._transformer_encoder_layer_fwd`) are taken on CPU, CUDA
and XPU only, by a list of devices in `nn.MultiheadAttention` and `nn.TransformerEncoderLayer`: on MPS the layers
always call `F.scaled_dot_product_attention`. Nothing is to be done for that here: the layers do not take their fast
path either while any function mode is active, as `torch.overrides.has_torch_function` is true then.
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

_ENGINE = "_engine_run_backward"  # what all of them end in; no public name
_ATTENTION = "scaled_dot_product_attention"
_ASK = "has_torch_function"


_inside: ContextVar[tuple[FunctionType, ...]] = ContextVar("_inside", default=())


def calls_attention(func: Callable[..., Any]) -> bool:
    """Whether a torch function is Python code that names `scaled_dot_product_attention`, and is not running yet."""
    named = isinstance(func, FunctionType) and _ATTENTION in func.__code__.co_names
    return named and func not in _inside.get()


def with_mode(mode: TorchFunctionMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a torch function's code with a mode in effect for what it calls.

    At its beginning such a function asks whether a mode wants it; a copy of the code is run that does not. Names are
    looked up now: a fix that has taken attention's place is called, as it would be without this.
    """
    names = func.__globals__ | dict.fromkeys((n for n in func.__code__.co_names if n.startswith(_ASK)), _no)
    code = FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    code.__kwdefaults__ = func.__kwdefaults__
    token = _inside.set((*_inside.get(), func))  # one that asks in another way all the same ends here
    try:
        with mode:
            return code(*args, **kwargs)
    finally:
        _inside.reset(token)


def _no(*_: Any) -> bool:
    return False


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
