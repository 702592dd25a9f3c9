"""G0': composite attention with the safe softmax. torch 2.5 and later, wherever the MPS operator is not taken.

That is: with gradients on, with dropout (to 2.11), with tensors that are not contiguous (2.5, and below macOS
15 up to 2.11). A row whose scores are all -inf gives zeros, and finite gradients.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from mpsdiag.emulation.rounding import (
    NEGATIVE_INFINITY,
    additive,
    after_the_query,
    expand_heads,
    scale_or_default,
    widen,
)

if TYPE_CHECKING:
    from torch import Tensor


def safe_composite_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attention as torch 2.5+ composes it: half types in float32 throughout, dead rows zero; differentiable.

    Args:
        query: `(..., Hq, L, D)`.
        key: `(..., Hkv, S, D)`.
        value: `(..., Hkv, S, Dv)`.
        mask: None, bool or floating, broadcastable to the scores.
        is_causal: Hide the keys after the query's own position.
        scale: Multiplies the scores; `1 / sqrt(D)` if None.
        enable_gqa: Query heads share key and value heads.
        dropout_p: Probability of dropping a weight.

    Returns:
        The output `(..., Hq, L, Dv)` and the attention weights `(..., Hq, L, S)`, in the dtype of the query.
    """
    dtype = query.dtype
    key, value = expand_heads(key, value, query, enable_gqa)
    root = math.sqrt(scale_or_default(scale, query))
    scores = (widen(query) * root) @ (widen(key) * root).mT
    if is_causal:
        scores = scores.masked_fill(after_the_query(*scores.shape[-2:]), NEGATIVE_INFINITY)
    elif mask is not None:
        scores = scores + additive(mask, dtype)
    dead = (scores == NEGATIVE_INFINITY).all(dim=-1, keepdim=True)
    # Twice: before, so that softmax and its gradient meet numbers; after, for the zeros.
    weights = torch.softmax(scores.masked_fill(dead, 0.0), dim=-1).masked_fill(dead, 0.0)
    if dropout_p > 0.0:
        weights = torch.dropout(weights, dropout_p, train=True)
    return (weights @ widen(value)).to(dtype), weights.to(dtype)
