"""Attention that is right with fully masked rows on every device and release, and costs next to nothing.

Nothing is remembered from one call to the next: a mask can be edited in ways that nobody can notice.
"""

from __future__ import annotations

from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from mpsdiag.sdpa.masked_rows import masked_rows, plain_on_cpu
from mpsdiag.sdpa.overrides import answer, overriding

if TYPE_CHECKING:
    from torch import Tensor

_SAME_SIZE = {
    torch.float32: torch.int32,
    torch.float64: torch.int64,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def safe_scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention` whose fully masked rows are zeros, with zero gradients.

    Fully masked rows may attend to every key, so that no kernel meets a softmax over nothing, and their output is
    then replaced by zeros. All other rows, and all gradients, are those of the stock call: on finite inputs
    the result is bit-equal to the CPU's of torch 2.5 and later. No device synchronization, no data-dependent
    branch. Arguments with a `__torch_function__` of their own answer as they do in the stock call.

    Args:
        query: `(..., Hq, L, D)`.
        key: `(..., Hkv, S, D)`.
        value: `(..., Hkv, S, Dv)`.
        attn_mask: Bool or floating, as the stock function takes it.
        dropout_p: Probability of dropping an attention weight.
        is_causal: Hide every key after the query's own position.
        scale: Multiplies the scores; `1 / sqrt(D)` if None.
        enable_gqa: Query heads share key and value heads.

    Returns:
        `(..., Hq, L, Dv)` in the dtype of the query.

    Raises:
        RuntimeError: What the stock function refuses, with its own words.
    """
    # Passed on only where asked for: torch 2.4 does not know the argument.
    more = {"enable_gqa": True} if enable_gqa else {}
    options: dict[str, Any] = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, **more}
    stock = F.scaled_dot_product_attention
    if overriding((query, key, value, attn_mask), options):
        result: Tensor = answer(stock, safe_scaled_dot_product_attention, (query, key, value, attn_mask), options)
        return result
    if attn_mask is None or not (attn_mask.dtype == torch.bool or attn_mask.is_floating_point()):
        return stock(query, key, value, attn_mask, **options)
    opened, dead = open_dead_rows(attn_mask, query.dtype)
    output = stock(query, key, value, opened, **options)
    return zero_rows(output, dead, fresh=isinstance(stock, BuiltinFunctionType))


def open_dead_rows(attn_mask: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Let the fully masked rows of a mask attend to every key; also returns them, as bool `(..., L, 1)`.

    The opened mask has the shape of the mask. With a `dtype`, that of the query, a boolean mask may come back
    as 0 and -inf in it.
    """
    # A function mode is to see the mask as it came.
    as_given = not plain_on_cpu(attn_mask) or torch._C._is_torch_function_mode_enabled()  # noqa: SLF001
    opened, dead = _open(attn_mask, None if as_given else dtype)
    if attn_mask.requires_grad and not opened.requires_grad and not torch.compiler.is_compiling():
        opened.requires_grad_()  # without gradients too, torch chooses its kernel by this flag of the mask
    return opened, dead


def _open(attn_mask: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    plain = plain_on_cpu(attn_mask)
    if plain and (expanded := _expanded(attn_mask)):
        # A mask that is expanded over rows or heads stays so: nothing is computed or stored twice.
        once = attn_mask
        for dim in expanded:
            once = once.narrow(dim, 0, 1)
        opened, dead = _open(once, dtype)
        return opened.expand(attn_mask.shape), dead
    dead = masked_rows(attn_mask)
    if attn_mask.dtype != torch.bool:
        return torch.where(dead, 0.0, attn_mask), dead
    if dtype is not None:
        # In one pass what the CPU's kernels make of a boolean mask in three: 0 and -inf in the dtype of the query.
        zero, never = (torch.tensor(x, dtype=dtype) for x in (0.0, float("-inf")))
        return torch.where(attn_mask, zero, torch.where(dead, zero, never)), dead
    if plain:
        # As bytes, for speed: the CPU's "or" of bools takes ten times as long.
        return (attn_mask.view(torch.uint8) | dead).view(torch.bool), dead
    return attn_mask | dead, dead


def _expanded(tensor: Tensor) -> list[int]:
    steps = enumerate(zip(tensor.shape, tensor.stride(), strict=True))
    return [dim for dim, (size, stride) in steps if size > 1 and not stride]


def _has_tangent(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]  # in torch


def zero_rows(output: Tensor, dead: Tensor, *, fresh: bool = False) -> Tensor:
    """Replace rows of an output `(..., L, Dv)` by zeros, whatever is in them; they get no gradient either.

    A new tensor of the same strides. Where the output is `fresh`, known to be nobody else's, it may be written itself.
    """
    whole = _SAME_SIZE.get(output.dtype)
    if whole is None or output.requires_grad or _has_tangent(output) or not plain_on_cpu(output):
        return torch.where(dead, 0.0, output)
    # Clearing bits, as NaN times 0 is NaN; on the CPU torch.where takes five times as long.
    bits, kept = output.view(whole), dead.to(whole).sub_(1)
    return (bits.bitwise_and_(kept) if fresh else bits & kept).view(output.dtype)
