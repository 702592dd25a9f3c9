"""What the generations share: scales, heads, masks, rounding; and the composite path, step by step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

NEGATIVE_INFINITY = float("-inf")


def scale_or_default(scale: float | None, query: Tensor) -> float:
    """The factor on the scores: as given, or `1 / sqrt(D)`."""
    return 1.0 / math.sqrt(query.size(-1)) if scale is None else scale


def product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product with float32 sums, in float32 (float64 stays float64)."""
    return widen(left) @ widen(right)


def widen(tensor: Tensor) -> Tensor:
    """Half types as float32; float32 and float64 as they are."""
    return tensor.float() if tensor.dtype in {torch.float16, torch.bfloat16} else tensor


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The values of `tensor` rounded to `dtype`, kept in the wider dtype for what comes next."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype).to(tensor.dtype)


def rounded_number(number: float, dtype: torch.dtype) -> float:
    """One number rounded to `dtype`; beyond its range, an infinity."""
    return float(torch.tensor(number, dtype=torch.float64).to(dtype))


def after_the_query(rows: int, columns: int) -> Tensor:
    """Bool `(rows, columns)`, True where a causal mask hides the key: column > row, aligned top left."""
    return torch.ones(rows, columns, dtype=torch.bool).triu(1)


def expand_heads(key: Tensor, value: Tensor, query: Tensor, enable_gqa: bool) -> tuple[Tensor, Tensor]:
    """Repeat key and value heads so that each query head has its own (grouped-query attention)."""
    if not enable_gqa:
        return key, value
    heads = query.size(-3)
    return (
        key.repeat_interleave(heads // key.size(-3), dim=-3),
        value.repeat_interleave(heads // value.size(-3), dim=-3),
    )


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as 0 and -inf in `dtype`, as the public function converts it; others as they are."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, NEGATIVE_INFINITY)


def all_minus_infinity(scores: Tensor) -> Tensor:
    """Bool `(..., L, 1)`: True for the rows `(..., L, S)` in which every score is -inf; NaN is none."""
    if not scores.size(-1):
        return torch.ones(*scores.shape[:-1], 1, dtype=torch.bool)
    return scores.amax(dim=-1, keepdim=True) == NEGATIVE_INFINITY


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
