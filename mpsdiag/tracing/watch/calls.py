"""A torch operation as it was called, its arguments by name, and its result when run alone: on the CPU, in float64."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from mpsdiag.emulation.mode import suspended
from mpsdiag.inputs.modules import mapped
from mpsdiag.sdpa.float64 import reference_attention
from mpsdiag.sdpa.watch import SDPA, dead_rows
from mpsdiag.tracing.watch.tensors import tensors_in

SOFTMAX: Final = ("softmax", "log_softmax")
TARGETED: Final = ("cross_entropy", "nll_loss")
LOSSES: Final = (*TARGETED, "ctc_loss", "kl_div", "binary_cross_entropy")

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

# Arguments of operations that are parsed in C, where inspect cannot read them.
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


def writes_in_place(func: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the operation changes its first argument or its `out` argument."""
    name = str(getattr(func, "__name__", "")).partition(".")[0]
    if name in _WRITING_DUNDERS or kwargs.get("out") is not None or kwargs.get("inplace") is True:
        return True
    return name.endswith("_") and not name.endswith("__")


def has_infinite_scalar(value: Any) -> bool:
    """Whether a plain infinite number is among the arguments, as in `masked_fill(mask, float("-inf"))`."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return any(map(has_infinite_scalar, value))
    return isinstance(value, float) and math.isinf(value)


@dataclass(frozen=True)
class TorchCall:
    """An operation with its arguments. `result` is the result of the watched run, if it was seen to run."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any = None

    @property
    def operation(self) -> str:
        """Its public name: `add` for `Tensor.__iadd__`, `mul` for `mul_` and `mul.Tensor`."""
        name = str(getattr(self.func, "__name__", "") or self.func)
        name = name.partition(".")[0].strip("_") or name
        return _ALIASES.get(name, name)

    @property
    def named(self) -> dict[str, Any]:
        """The arguments by name; arguments with unknown names are called `argument 0`, `argument 1`, ..."""
        names = _PARAMETERS.get(self.operation, ())
        named = {names[i] if i < len(names) else f"argument {i}": value for i, value in enumerate(self.args)}
        return {**named, **self.kwargs}


_HIDES = ("TransformerEncoder", "TransformerEncoderLayer", "MultiheadAttention")


def run(call: TorchCall) -> Tensor | None:
    """The first floating tensor that a call gives, or writes into; None if there is none, or if it raises."""
    try:
        result = call.func(*call.args, **call.kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None
    if result is None and call.args:  # As `__setitem__`.
        result = call.args[0]
    return next((t for _, t in tensors_in(result) if t.is_floating_point()), None)


def replay(call: TorchCall, dtype: torch.dtype | None = None) -> Tensor | None:
    """The first floating tensor of the operation's result on the plain CPU; None if it cannot be run there."""
    change = partial(moved, dtype=dtype)
    with suspended(), torch.no_grad():
        return run(TorchCall(call.func, mapped(call.args, change), mapped(dict(call.kwargs), change)))


def in_float64(call: TorchCall) -> Tensor | None:
    """The result in float64; attention from its definition, not from another kernel of torch."""
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


def moved(value: Any, dtype: torch.dtype | None = None) -> Any:
    """A copy of a tensor on the CPU, in this dtype if floating; a matching device or dtype; the rest unchanged."""
    if isinstance(value, Tensor):
        copied = value.detach().to("cpu", copy=True)  # The operation may write into its argument.
        return copied.to(dtype) if dtype is not None and copied.is_floating_point() else copied
    if isinstance(value, torch.device):
        return torch.device("cpu")
    if isinstance(value, torch.dtype) and dtype is not None and value.is_floating_point:
        return dtype
    return value


def scores_of(named: Mapping[str, Any]) -> Tensor | None:
    """|q . k| in float64 on the CPU, (..., heads, queries, keys); None without query and key.

    Unscaled, because these overflow first in half precision.
    """
    query, key = named.get("query"), named.get("key")
    if not isinstance(query, Tensor) or not isinstance(key, Tensor):
        return None
    q, k = (tensor.detach().cpu().double() for tensor in (query, key))
    if q.dim() >= 3 and q.shape[-3] != k.shape[-3] and q.shape[-3] % k.shape[-3] == 0:
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3)
    return (q @ k.mT).abs()


def fully_masked_rows(call: TorchCall, result: Tensor) -> Tensor | None:
    """Bool, (..., queries): the mask leaves this row no key. None if the call is not attention, or has no mask.

    A row of float16's lowest finite number counts too: with a negative score it becomes minus infinity.
    """
    named = call.named
    if call.operation == SDPA:
        mask = named.get("attn_mask")
        if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
            return None
        masked = dead_rows(mask)
        if mask.dtype == torch.float16:
            masked = masked | (mask <= torch.finfo(mask.dtype).min).all(-1)
        return masked.expand(result.shape[:-1])
    if call.operation in _HIDES:
        return _hidden_rows(named, result)
    scores = next((value for value in named.values() if isinstance(value, Tensor)), None)
    if call.operation not in (*SOFTMAX, "sub") or scores is None or scores.shape != result.shape:
        return None
    if call.operation == "sub":  # A softmax by hand: its scores less the greatest of their row.
        largest = named.get("other")
        if not isinstance(largest, Tensor) or largest.shape != (*scores.shape[:-1], 1):
            return None
        return (scores == float("-inf")).all(-1) & (largest[..., 0] == float("-inf"))
    dimension = named.get("dim", -1)
    last = dimension is None or dimension in (-1, scores.dim() - 1)
    return (scores == float("-inf")).all(-1) if last else None


def _hidden_rows(named: Mapping[str, Any], result: Tensor) -> Tensor | None:
    """For torch's own transformer layers, whose masks hide where they are True or -inf; (sequences, queries)."""
    if result.dim() != 3:
        return None
    sequences, queries = result.shape[:2]
    hidden = torch.zeros(sequences, 1, queries, 1, dtype=torch.bool, device=result.device)
    for name in ("src_key_padding_mask", "key_padding_mask", "mask", "src_mask", "attn_mask"):
        mask = named.get(name)
        if isinstance(mask, Tensor):
            hides = mask if mask.dtype == torch.bool else mask == float("-inf")
            shape = (sequences, 1, 1, -1) if "padding" in name else (-1, 1, queries, mask.shape[-1])
            hidden = hidden | hides.reshape(shape if mask.dim() == 2 else (sequences, -1, *mask.shape[-2:]))
    return hidden.all(-1).any(1)
