"""Work through attention in blocks of heads small enough for the cache, and within memory at any size."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    # One block of (query, key, value, mask) -> its output and its attention weights.
    Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]

SCORES_IN_A_BLOCK = 1 << 18


def in_blocks(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, want_weights: bool
) -> tuple[Tensor, Tensor | None]:
    """Apply an attention kernel block by block over batch and heads.

    Heads are independent of each other, so the result does not depend on the cut.
    """
    batch, heads = (max(x.size(dim) for x in (query, key, value)) for dim in (0, 1))
    if not query.shape[:2] == key.shape[:2] == value.shape[:2]:
        query, key, value = (x.expand(batch, heads, *x.shape[2:]) for x in (query, key, value))
    rows, columns = query.size(2), key.size(2)
    if mask is not None:
        mask = mask.expand(batch, heads, rows, columns)
    if batch * heads * rows * columns <= SCORES_IN_A_BLOCK:
        output, weights = kernel(query, key, value, mask)
        return output, weights.to(query.dtype) if want_weights else None
    output = query.new_empty(batch, heads, rows, value.size(3))
    kept = query.new_empty(batch, heads, rows, columns) if want_weights else None
    for block in _blocks(batch, heads, rows * columns):
        part, part_weights = kernel(
            query[block], key[block], value[block], None if mask is None else mask[block]
        )
        output[block] = part
        if kept is not None:
            kept[block] = part_weights
    return output, kept


def _blocks(batch: int, heads: int, scores: int) -> Iterator[tuple[slice, slice]]:
    """Slices of batch and heads with at most `SCORES_IN_A_BLOCK` scores each, or one head."""
    heads_at_once = min(heads, max(1, SCORES_IN_A_BLOCK // max(1, scores)))
    whole = heads_at_once == heads
    batch_at_once = max(1, SCORES_IN_A_BLOCK // max(1, scores * heads)) if whole else 1
    for first in range(0, batch, batch_at_once):
        for head in range(0, heads, max(1, heads_at_once)):
            yield slice(first, first + batch_at_once), slice(head, head + heads_at_once)
