"""G0: composite attention with a plain softmax, in the dtype of the query. torch 2.0 to 2.4.

A row whose scores are all -inf gives NaN, in the output and in the gradients.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from mpsdiag.emulation.generations.rounding import (
    NEGATIVE_INFINITY,
    additive,
    after_the_query,
    all_minus_infinity,
    expand_heads,
    product,
    rounded,
    scale_or_default,
    widen,
)

if TYPE_CHECKING:
    from torch import Tensor


def composite_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    dropout_p: float = 0.0,
    *,
    zero_dead_rows: bool = False,
    wide_scores: bool = False,
) -> tuple[Tensor, Tensor]:
    """Attention as torch 2.0 to 2.4 composes it from single operators; differentiable.

    Every intermediate is rounded to the dtype of the query; both factors are scaled by `sqrt(scale)`, of a
    negative scale by that of its amount, with the sign on the query. `zero_dead_rows` is the safe softmax:
    rows whose scores are all -inf give zeros, and finite gradients. With `wide_scores`, half types are
    computed in float32 and rounded once.
    """
    dtype = query.dtype
    steps = torch.float32 if wide_scores and dtype != torch.float64 else dtype
    key, value = expand_heads(key, value, query, enable_gqa)
    if wide_scores:
        query, key = widen(query), widen(key)
    factor = scale_or_default(scale, query)
    root = math.sqrt(abs(factor))
    scores = rounded(product(query * math.copysign(root, factor), (key * root).mT), steps)
    if is_causal:
        scores = scores.masked_fill(after_the_query(*scores.shape[-2:]), NEGATIVE_INFINITY)
    elif mask is not None:
        scores = rounded(scores + additive(mask, dtype), steps)
    if zero_dead_rows:
        dead = all_minus_infinity(scores.detach())
        # Twice: before, so that softmax and its gradient meet numbers; after, for the zeros.
        weights = torch.softmax(scores.masked_fill(dead, 0.0), dim=-1).masked_fill(dead, 0.0)
    else:
        weights = torch.softmax(scores, dim=-1)
    weights = weights.to(steps)
    if dropout_p > 0.0:
        weights = torch.dropout(weights, dropout_p, train=True)
    return product(weights, value).to(dtype), weights.to(dtype)
