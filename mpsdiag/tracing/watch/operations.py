"""A torch operation as it was called: its public name, its arguments by name, whether it writes in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mpsdiag.sdpa.watch import SDPA

SOFTMAX: Final = ("softmax", "log_softmax")
LOSSES: Final = ("cross_entropy", "nll_loss", "ctc_loss", "kl_div", "binary_cross_entropy")

POLES: Final = ("div", "reciprocal", "rsqrt", "sqrt", "log", "log2", "log10", "acos", "asin")
"""Infinite or undefined somewhere, and so are their derivatives."""

_OPERATORS: Final = ("add", "sub", "mul", "truediv", "div", "matmul", "pow")
_ALIASES: Final = {
    **{prefix + name: name for prefix in ("r", "i") for name in _OPERATORS},
    **dict.fromkeys(("truediv", "rtruediv", "itruediv", "true_divide", "divide"), "div"),
    "multiply": "mul",
    "scaled_dot_product_attention_math_for_mps": SDPA,
}
_WRITING_DUNDERS: Final = ("__setitem__", *(f"__i{name}__" for name in _OPERATORS))

# The arguments of operations that C code parses, and inspect cannot read.
_PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = {
    SDPA: ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"),
    "linear": ("input", "weight", "bias"),
    "embedding": ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "addmm": ("bias", "input", "weight"),
    **dict.fromkeys(
        ("cross_entropy", "nll_loss"),
        ("input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction"),
    ),
    **dict.fromkeys((*SOFTMAX, "std", "var", "std_mean", "var_mean", "mean", "sum", "log", "sqrt"), ("input", "dim")),
    **dict.fromkeys(("matmul", "bmm", "add", "sub", "mul", "div"), ("input", "other")),
}


def operation_name(func: Callable[..., Any]) -> str:
    """The public name of what a TorchFunctionMode sees: `add` for `Tensor.__iadd__`, `mul_` and `mul.Tensor`."""
    name = str(getattr(func, "__name__", "") or func)
    name = name.partition(".")[0].strip("_") or name
    return _ALIASES.get(name, name)


def writes_in_place(func: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the operation changes its first argument, or one it was given as `out`."""
    name = str(getattr(func, "__name__", "")).partition(".")[0]
    if name in _WRITING_DUNDERS or kwargs.get("out") is not None or kwargs.get("inplace") is True:
        return True
    return name.endswith("_") and not name.endswith("__")


def arguments(operation: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name; those whose names nobody knows are called `argument 0`, `argument 1`, ..."""
    names = _PARAMETERS.get(operation, ())
    named = {names[i] if i < len(names) else f"argument {i}": value for i, value in enumerate(args)}
    return {**named, **kwargs}


def has_infinite_scalar(value: Any) -> bool:
    """Whether a plain infinite number is among the arguments, as in `masked_fill(mask, float("-inf"))`."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return any(map(has_infinite_scalar, value))
    return isinstance(value, float) and math.isinf(value)


@dataclass(frozen=True)
class TorchCall:
    """An operation with its arguments. `result` is as it came out, where it was seen to run."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any = None

    @property
    def operation(self) -> str:
        """Its public name."""
        return operation_name(self.func)

    @property
    def named(self) -> dict[str, Any]:
        """The arguments by name."""
        return arguments(self.operation, self.args, self.kwargs)
