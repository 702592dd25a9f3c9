"""What the host code hands to a kernel: which tensors it copies first, and by which strides the kernel reads.

The vector kernels of 2.8 to 2.11 number the heads through all sequences and know no batch stride: head n begins
at n times the head stride. The host copies what that cannot read, but its test asks `is_contiguous`, for which the
stride of a dimension of size 1 does not matter, and lets one more layout of the query pass (SDPA002, SDPA003). Of
a mask it hands over the strides of key, row and head, with 0 for a dimension of size 1 (SDPA005, SDPA006).
Later kernels take every stride; those of the prefill path of 2.13 in 32 bits (SDPA030).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mpsdiag.emulation.call import AttentionCall
    from mpsdiag.emulation.machine import Machine

Strides = tuple[int, int, int, int]
OFFSETS = 1 << 31  # what a signed 32-bit offset reaches


def as_vector_kernel_reads(call: AttentionCall, machine: Machine, *, two_pass: bool) -> AttentionCall:
    """The call with query, key, value and mask as a vector kernel of the machine's release reads them.

    The mask comes expanded to `(B, H, L, S)`.
    """
    query, key, value = call.tensors
    if machine.has("SDPA003") or machine.has("SDPA002"):
        query = query if _handed_over(query) else query.contiguous()
        query = _read(query, _dense(query) if machine.has("SDPA002") else _by_heads(query), machine.garbage)
    if machine.has("SDPA003"):
        key, value = (_read(x, _by_heads(x), machine.garbage) for x in (key.contiguous(), value.contiguous()))
    mask = expanded_mask(call)
    permuted, lost = machine.has("SDPA005") and not two_pass, machine.has("SDPA006")
    if mask is not None and mask.dtype == torch.bool and (permuted or lost):
        mask = _read(mask, _of_mask(mask, permuted=permuted, lost=lost), machine.garbage)
    return replace(call, query=query, key=key, value=value, mask=mask)


def as_prefill_kernel_reads(call: AttentionCall, machine: Machine) -> AttentionCall:
    """The call with its tensors as a prefill kernel reads them, the mask expanded to `(B, H, L, S)`."""
    call = replace(call, mask=expanded_mask(call))
    if not machine.has("SDPA030"):
        return call
    query, key, value = (_within_32_bits(x, machine.garbage) for x in call.tensors)
    mask = None if call.mask is None else _within_32_bits(call.mask, machine.garbage)
    return replace(call, query=query, key=key, value=value, mask=mask)


def expanded_mask(call: AttentionCall) -> Tensor | None:
    """The mask in the shape of the scores; dimensions that were broadcast have stride 0."""
    return None if call.mask is None else call.mask.expand(*call.query.shape[:3], call.key.size(2))


def _handed_over(query: Tensor) -> bool:
    """Whether the query is not copied: contiguous, or heads and rows swapped, every stride compared."""
    _, heads, rows, width = query.shape
    return query.is_contiguous() or query.stride() == (rows * heads * width, width, heads * width, 1)


def _dense(tensor: Tensor) -> Strides:
    """The strides of a contiguous tensor of this shape."""
    _, heads, rows, width = tensor.shape
    return heads * rows * width, rows * width, width, 1


def _by_heads(tensor: Tensor) -> Strides:
    """The tensor's strides, the batch's assumed: heads are numbered through all sequences."""
    _, head, row, column = tensor.stride()
    return tensor.size(1) * head, head, row, column


def _of_mask(mask: Tensor, *, permuted: bool, lost: bool) -> Strides:
    """The strides by which a bool mask is read.

    Permuted: the host sends (key, row, head), the kernel takes them for (head, key, row).
    """
    batch, head, row, key = (stride if size > 1 else 0 for size, stride in zip(mask.shape, mask.stride(), strict=True))
    if permuted:
        head, row, key = key, head, row
    return mask.size(1) * head if lost else batch, head, row, key


def _read(tensor: Tensor, strides: Strides, garbage: torch.Generator) -> Tensor:
    """The same memory by other strides; behind its end lies garbage."""
    begin, memory = int(tensor.storage_offset()), tensor.untyped_storage().nbytes() // tensor.itemsize
    if not tensor.numel():
        return tensor
    last = begin + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    if last < memory:
        return tensor.as_strided(tensor.shape, strides)
    at = begin + _offsets(tensor.shape, strides)
    found = tensor.as_strided((memory,), (1,), 0)[at.clamp_max(memory - 1)]
    return torch.where(at < memory, found, _unwritten(tensor, garbage))


def _offsets(shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    """For each index of a shape, how many elements it is from the beginning."""
    steps = [torch.arange(n) * s for n, s in zip(shape, strides, strict=True)]
    return torch.stack(torch.meshgrid(*steps, indexing="ij")).sum(0)


def _within_32_bits(tensor: Tensor, garbage: torch.Generator) -> Tensor:
    """The tensor as read with signed 32-bit offsets: rows that lie further from its beginning are garbage."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if reach < OFFSETS:
        return tensor
    rows = _offsets(tensor.shape[:3], tensor.stride()[:3]).unsqueeze(-1)
    return torch.where(rows < OFFSETS, tensor, _unwritten(tensor, garbage))


def _unwritten(like: Tensor, garbage: torch.Generator) -> Tensor:
    """What lies in memory that nobody wrote, as numbers of a tensor's shape and dtype."""
    found = torch.randn(like.shape, generator=garbage)
    return found > 0 if like.dtype == torch.bool else found.to(like.dtype)
