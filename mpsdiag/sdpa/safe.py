"""Attention that is right with fully masked rows on every device and release, and costs next to nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from mpsdiag.sdpa.dead_rows import dead_rows

if TYPE_CHECKING:
    from torch import Tensor

_MEMORY = "_mpsdiag_unmasked"
_SAME_SIZE = {
    torch.float32: torch.int32,
    torch.float64: torch.int64,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


@dataclass
class _Memory:
    """What was worked out from one version of a mask, by view of it: the opened mask and the dead rows."""

    version: int
    known: dict[tuple[object, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)


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

    Dead rows are let attend to every key, so that no kernel meets a softmax over nothing, and their output is
    then replaced by zeros. All other rows, and all gradients, are those of the stock call: on finite inputs
    the result is bit-equal to the CPU's of torch 2.5 and later. No device synchronization, no data-dependent
    branch. The layers of a model that share one mask tensor share the work on it.

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
    more: dict[str, bool] = {"enable_gqa": True} if enable_gqa else {}
    if attn_mask is None or not (attn_mask.dtype == torch.bool or attn_mask.is_floating_point()):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more
        )
    opened, dead = open_dead_rows(attn_mask, query.dtype)
    output = F.scaled_dot_product_attention(
        query, key, value, opened, dropout_p, is_causal, scale=scale, **more
    )
    return zero_rows(output, dead)


def open_dead_rows(attn_mask: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Let the dead rows of a mask attend to every key, and say which they are.

    The result is remembered with the mask, for this version of its contents and this view of it, and goes
    with it: do not write into it.

    Args:
        attn_mask: Bool or floating, `(..., L, S)`.
        dtype: Dtype of the query, if a bool mask may come back as 0 and -inf in it. The stock function would
            convert it in every layer; a mask that is remembered is converted once.

    Returns:
        The opened mask, and the dead rows as bool `(..., L, 1)`.
    """
    if not _may_remember(attn_mask):
        return _open(attn_mask)
    # Older transformers hand every layer a fresh slice of one mask: remember with the tensor that was sliced.
    owner = attn_mask if attn_mask._base is None else attn_mask._base  # noqa: SLF001 - no public name for it
    view = (attn_mask.shape, attn_mask.stride(), attn_mask.storage_offset(), attn_mask.dtype, dtype)
    version = attn_mask._version  # noqa: SLF001 - as autograd itself tells an edited tensor
    memory: _Memory | None = getattr(owner, _MEMORY, None)
    if memory is None or memory.version != version:
        memory = _Memory(version)
        setattr(owner, _MEMORY, memory)
    if view not in memory.known:
        opened, dead = _open(attn_mask)
        if dtype is not None and opened.dtype == torch.bool:
            opened = torch.zeros_like(opened, dtype=dtype).masked_fill_(~opened, float("-inf"))
        memory.known[view] = opened, dead
    return memory.known[view]


def zero_rows(output: Tensor, dead: Tensor) -> Tensor:
    """Replace rows by zeros, whatever is in them; in place where no gradient is recorded.

    Args:
        output: `(..., L, Dv)`, fresh from attention.
        dead: Bool `(..., L, 1)`, True for the rows to replace; they get no gradient either.

    Returns:
        `output` with zeros; with gradients a new tensor of the same strides.
    """
    if output.requires_grad:
        return torch.where(dead, 0.0, output)
    whole = _SAME_SIZE.get(output.dtype)
    if whole is not None and output.device.type == "cpu" and not _traced_or_transformed():
        # Clearing bits, as NaN times 0 is NaN; vectorized on the CPU, where masked_fill_ takes ten times as
        # long.
        output.view(whole).bitwise_and_(dead.to(whole) - 1)
        return output
    return output.masked_fill_(dead, 0.0)


def _open(attn_mask: Tensor) -> tuple[Tensor, Tensor]:
    dead = dead_rows(attn_mask).unsqueeze(-1)
    if attn_mask.dtype == torch.bool:
        return attn_mask | dead, dead
    return torch.where(dead, 0.0, attn_mask), dead


def _may_remember(attn_mask: Tensor) -> bool:
    """Whether results may outlive the call: not while tracing, transforming or capturing."""
    return not (
        _traced_or_transformed()
        or type(attn_mask) is not torch.Tensor
        or attn_mask.requires_grad
        or attn_mask.is_inference()
        or torch.is_inference_mode_enabled()
        or (attn_mask.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def _traced_or_transformed() -> bool:
    """Whether the call is being compiled or traced, or runs under vmap, grad or another function transform."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None  # noqa: SLF001 - what torch.jit.is_tracing asks
        or torch._C._are_functorch_transforms_active()  # noqa: SLF001 - no public name for it
    )
