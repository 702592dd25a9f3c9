"""G0 to G3: single operators (torch 2.0 to 2.4), the MPSGraph of 2.5 to 2.9, and that of 2.10 and later.

Up to 2.9 every step is rounded to the dtype of the query. A row of -inf gives NaN in G0, in its gradients too, and in
G1; zeros in G2 (2.9). G3 is float32 from the first product to the last. The source multiplies query and key in their
own dtype and casts afterwards, but a float16 product that overflows does not reach the scores, as the upstream
regression test (head dimension 80, everything 256, products of 5 million) passes on Macs. So the graph is taken to
fold the cast into the product, and nothing is rounded there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpsdiag.emulation.generations.rounding import (
    NEGATIVE_INFINITY,
    additive,
    all_minus_infinity,
    expand_heads,
    product,
    rounded,
    rounded_number,
    scale_or_default,
    widen,
)

if TYPE_CHECKING:
    from mpsdiag.emulation.call import AttentionCall

    Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


CAUSAL_FILL = -1e20  # the value that the graph writes over hidden scores; it is -inf only in float16
SCORES_IN_A_BLOCK = 1 << 18  # small enough for the cache, and within memory at any size
TINY_SHIFT = 1e-20  # 2.8+ adds it to float32 products on macOS 15+, against a fusion that gave NaN


def composite_attention(
    call: AttentionCall, *, zero_dead_rows: bool = False, wide_scores: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention as torch 2.0 to 2.4 composes it from single operators; differentiable.

    Every intermediate is rounded to the dtype of the query; both factors are scaled by `sqrt(abs(scale))`, with
    the sign of a negative scale on the query. `zero_dead_rows` is the safe softmax:
    rows whose scores are all -inf give zeros, and finite gradients. With `wide_scores`, half types are
    computed in float32 and rounded once.
    """
    query, dtype = call.query, call.query.dtype
    steps = torch.float32 if wide_scores and dtype != torch.float64 else dtype
    key, value = expand_heads(call.key, call.value, query, call.enable_gqa)
    if wide_scores:
        query, key = widen(query), widen(key)
    factor = scale_or_default(call.scale, query)
    root = math.sqrt(abs(factor))
    scores = rounded(product(query * math.copysign(root, factor), (key * root).mT), steps)
    if call.is_causal:
        scores = scores.masked_fill(_later_keys(*scores.shape[-2:]), NEGATIVE_INFINITY)
    elif call.mask is not None:
        scores = rounded(scores + additive(call.mask, dtype), steps)
    if zero_dead_rows:
        dead = all_minus_infinity(scores.detach())
        # Twice: before, so that softmax and its gradient meet numbers; after, for the zeros.
        weights = torch.softmax(scores.masked_fill(dead, 0.0), dim=-1).masked_fill(dead, 0.0)
    else:
        weights = torch.softmax(scores, dim=-1)
    weights = weights.to(steps)
    if call.dropout_p > 0.0:
        weights = torch.dropout(weights, call.dropout_p, train=True)
    return product(weights, value).to(dtype), weights.to(dtype)


def graph_attention(
    call: AttentionCall,
    *,
    zero_dead_rows: bool = False,
    wide_scores: bool = False,
    causal_group: int = 1,
    shift: float = 0.0,
    want_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention as the graphs compute it, by default that of 2.5 to 2.8: every step rounded to the query's dtype.

    `zero_dead_rows` is the repair of 2.9: weights of rows whose scores are all -inf become 0. `wide_scores`
    is that of 2.10: float32 from the products to the weights, so that float16 cannot overflow. `causal_group` rows
    share the causal limit of the last of them: 1 is right, 4 is the defect of 2.10 to 2.12. `shift` is added to
    float32 products.
    """
    dtype = call.query.dtype
    key, value = expand_heads(call.key, call.value, call.query, call.enable_gqa)
    steps = torch.float32 if wide_scores and dtype != torch.float64 else dtype
    factor = scale_or_default(call.scale, call.query)
    hidden = _later_keys(call.query.size(2), key.size(2), causal_group) if call.is_causal else None

    def block(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        scores = rounded(product(query, key.mT), steps)  # float16 can overflow here, before the scaling
        if shift and dtype == torch.float32:
            scores += shift
        scores = rounded(scores.mul_(factor), steps)
        if hidden is not None:
            scores.masked_fill_(hidden, rounded_number(CAUSAL_FILL, steps))
        elif mask is not None:
            scores = rounded(scores.add_(additive(mask, dtype).to(steps)), steps)
        weights = rounded(torch.softmax(scores, dim=-1), steps)
        if zero_dead_rows:
            weights.masked_fill_(all_minus_infinity(scores), 0.0)
        return product(weights, value).to(dtype), weights

    return in_blocks(block, call.query, key, value, call.mask, want_weights=want_weights)


def _later_keys(rows: int, columns: int, group: int = 1) -> Tensor:
    """Bool `(rows, columns)`: True where the key is later than the last row of the query's group."""
    last_of_group = torch.arange(rows) // group * group + group - 1
    return torch.arange(columns) > last_of_group.unsqueeze(-1)


def in_blocks(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, want_weights: bool
) -> tuple[Tensor, Tensor | None]:
    """Apply an attention kernel block by block over batch and heads.

    Heads are independent of each other, so the result does not depend on the blocks.
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
        part, part_weights = kernel(query[block], key[block], value[block], None if mask is None else mask[block])
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
