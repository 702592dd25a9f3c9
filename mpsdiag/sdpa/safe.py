"""Attention that handles fully masked rows correctly on every device and release, at almost no cost.

Nothing is cached between calls, because a mask can be edited undetectably.
"""

from types import BuiltinFunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mpsdiag.sdpa.watch import answer, dead_rows, overriding, plain_on_cpu


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

    Fully masked rows may attend to every key, so that no kernel meets a softmax over nothing, and their output is then
    replaced by zeros; where gradients are off, the second is enough for the CPU's own kernels, whose rows do not mix.
    All other rows, and all gradients, are those of the stock call: on finite inputs the result is bit-equal to that
    of the CPU in torch 2.5 and later. There is no device synchronization, and no data-dependent branch except on the
    CPU, outside compilation. Arguments with their own `__torch_function__` behave as in the stock call.

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
    # Passed on only if given: torch 2.4 does not know the argument.
    more = {"enable_gqa": True} if enable_gqa else {}
    options: dict[str, Any] = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, **more}
    stock = F.scaled_dot_product_attention
    if overriding((query, key, value, attn_mask), options):
        result: Tensor = answer(stock, safe_scaled_dot_product_attention, (query, key, value, attn_mask), options)
        return result
    if attn_mask is None or not (attn_mask.dtype == torch.bool or attn_mask.is_floating_point()):
        return stock(query, key, value, attn_mask, **options)
    by_torch = isinstance(stock, BuiltinFunctionType)
    opened, dead = open_dead_rows(attn_mask, by_torch=by_torch)
    output = stock(query, key, value, opened, **options)
    return zero_rows(output, dead, fresh=by_torch)


def open_dead_rows(attn_mask: Tensor, *, by_torch: bool = False) -> tuple[Tensor, Tensor]:
    """Let the fully masked rows of a mask attend to every key; also return them, as bool `(..., L, 1)`.

    The opened mask has the shape and dtype of the mask; on the CPU it is the mask itself if no row is fully masked.
    So it is where torch's own function is to take it (`by_torch`) without gradients: what such a row gives stays in it,
    and zeroing the output is enough.
    """
    if by_torch and plain_on_cpu(attn_mask) and not _watched_or_graded():
        return attn_mask, dead_rows(attn_mask, keepdim=True)
    once = attn_mask
    for dim in _expanded(attn_mask) if plain_on_cpu(attn_mask) else ():
        once = once.narrow(dim, 0, 1)  # expanded over rows or heads it stays so: nothing is computed or stored twice
    opened, dead = _open(once)
    if once is not attn_mask:
        opened = opened.expand(attn_mask.shape)
    if attn_mask.requires_grad and not opened.requires_grad and not torch.compiler.is_compiling():
        opened.requires_grad_()  # without gradients too, torch chooses its kernel by this flag of the mask
    return opened, dead


def _watched_or_graded() -> bool:
    """Whether other code, such as the emulation, may compute the call, or gradients may be required."""
    return torch.is_grad_enabled() or torch._C._is_torch_function_mode_enabled()  # noqa: SLF001 - no public name


def _open(attn_mask: Tensor) -> tuple[Tensor, Tensor]:
    dead = dead_rows(attn_mask, keepdim=True)
    is_bool = attn_mask.dtype == torch.bool
    if not plain_on_cpu(attn_mask) or attn_mask.requires_grad or not attn_mask.dim():
        return attn_mask | dead if is_bool else torch.where(dead, 0.0, attn_mask), dead
    # On the CPU looking costs nothing: there are few rows, and no pass over the whole mask is needed.
    rows = dead.reshape(-1).nonzero().view(-1)
    if not len(rows):
        return attn_mask, dead
    opened = attn_mask.clone(memory_format=torch.contiguous_format)
    opened.view(len(dead.view(-1)), -1).index_fill_(0, rows, float(is_bool))
    return opened, dead


def _expanded(tensor: Tensor) -> list[int]:
    steps = enumerate(zip(tensor.shape, tensor.stride(), strict=True))
    return [dim for dim, (size, stride) in steps if size > 1 and not stride]


def zero_rows(output: Tensor, dead: Tensor, *, fresh: bool = False) -> Tensor:
    """Replace rows of an output `(..., L, Dv)` by zeros, whatever they contain; they get no gradient either.

    The strides stay. It is a new tensor, or the output itself: where that has no such row, and where it is `fresh`,
    known to be nobody else's, and may be written.
    """
    plain = plain_on_cpu(output) and plain_on_cpu(dead) and dead.dim() <= output.dim()
    if not plain or output.requires_grad:
        return torch.where(dead, 0.0, output)
    # As the rows lie in memory, and only those: torch.where takes ten times as long on the CPU.
    outermost_first = sorted(range(output.dim()), key=output.stride, reverse=True)
    marks = dead[(None,) * (output.dim() - dead.dim())].permute(outermost_first)
    split = max((dim for dim, size in enumerate(marks.shape) if size > 1), default=0) + 1
    marks = marks.expand(*output.permute(outermost_first).shape[:split], *marks.shape[split:]).reshape(-1)
    rows = marks.nonzero().view(-1)
    if not len(rows) or not output.numel():
        return output
    zeroed = output if fresh else output.clone()
    laid_out = zeroed.permute(outermost_first)
    if not laid_out.is_contiguous():
        return zeroed.masked_fill_(dead, 0.0)
    laid_out.view(len(marks), -1).index_fill_(0, rows, 0.0)
    return zeroed
