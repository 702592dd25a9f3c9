"""Tensors as kernels read them that get the strides wrong (SDPA002, SDPA003, SDPA005, SDPA006)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def query_without_strides(query: Tensor) -> Tensor:
    """The query as read by a kernel that takes it for contiguous (SDPA002).

    Args:
        query: `(B, H, L, D)`.

    Returns:
        The same shape, a view of the same memory.
    """
    if not _handed_over_as_it_is(query):
        return query
    _, heads, rows, width = query.shape
    return query.as_strided(query.shape, (heads * rows * width, rows * width, width, 1))


def query_without_batch_stride(query: Tensor) -> Tensor:
    """The query as read by a kernel that steps from sequence to sequence by heads only (SDPA003).

    The kernel numbers heads through all sequences and multiplies by the head stride. Key and value are made
    contiguous by the host code and are read right.

    Args:
        query: `(B, H, L, D)`.

    Returns:
        The same shape, a view of the same memory.
    """
    if not _handed_over_as_it_is(query):
        return query
    _, head, row, column = query.stride()
    return query.as_strided(query.shape, (query.size(1) * head, head, row, column))


def _handed_over_as_it_is(query: Tensor) -> bool:
    """Whether the host code hands the kernel this layout: heads and rows swapped, as transformers makes it.

    Any other layout is made contiguous first, and a contiguous one is read right.
    """
    batch, heads, rows, width = query.shape
    swapped = (rows * heads * width, width, heads * width, 1)
    lengths = zip(query.shape, query.stride(), swapped, strict=True)
    return not query.is_contiguous() and batch > 0 and all(n == 1 or s == t for n, s, t in lengths)


def mask_with_wrong_strides(
    mask: Tensor, *, permuted: bool, batch_lost: bool, garbage: torch.Generator
) -> Tensor:
    """A bool mask as read by the vector kernels that mix up its strides.

    Args:
        mask: Bool `(B, H, L, S)`, expanded: dimensions that were broadcast have stride 0.
        permuted: The kernel takes the strides (key, query, head) for (head, key, query) (SDPA005).
        batch_lost: The kernel numbers heads through all sequences and knows no batch stride (SDPA006).
        garbage: What it finds where it reads past the end of the mask's memory.

    Returns:
        Bool `(B, H, L, S)`, fresh.
    """
    batch, heads, rows, keys = mask.shape
    s_batch, s_head, s_row, s_key = mask.stride()
    if permuted:
        s_head, s_row, s_key = s_key, s_head, s_row
    if batch_lost:
        s_batch = heads * s_head
    at = torch.full((1, 1, 1, 1), int(mask.storage_offset()))
    for dim, (length, stride) in enumerate(
        zip((batch, heads, rows, keys), (s_batch, s_head, s_row, s_key), strict=True)
    ):
        shape = [1, 1, 1, 1]
        shape[dim] = length
        at = at + torch.arange(length).reshape(shape) * stride
    memory = mask.as_strided((mask.untyped_storage().nbytes(),), (1,), 0)
    outside = at >= memory.numel()
    read = memory[at.clamp_max(memory.numel() - 1)]
    if bool(outside.any()):
        read = torch.where(outside, torch.rand(at.shape, generator=garbage) < 0.5, read)
    return read
