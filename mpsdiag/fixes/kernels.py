"""Attention modes as drop-in bodies of `F.scaled_dot_product_attention`: what a process-wide install runs.

A kernel gets the function it stands before, so that it never looks the patched name up again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mpsdiag.fixes.masks import Repair, finite_minimum, is_mask, zeroed

Sdpa = Callable[..., Tensor]
Kernel = Callable[..., Tensor]


def repairing(repair: Repair) -> Kernel:
    """Make a kernel that repairs the mask, calls SDPA once, and zeroes what the repair says.

    Args:
        repair: One of `mpsdiag.fixes.masks`.
    """

    def kernel(
        sdpa: Sdpa,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        *rest: Any,
        **options: Any,
    ) -> Tensor:
        if attn_mask is None or not is_mask(attn_mask):
            return sdpa(query, key, value, attn_mask, *rest, **options)
        mask, zero = repair(attn_mask, query.dtype)
        return zeroed(sdpa(query, key, value, mask, *rest, **options), zero)

    return kernel


def eager(
    sdpa: Sdpa,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute attention in plain operations, as transformers' eager attention does; `sdpa` is never called.

    The scores of the whole (L, S) square are in memory. Masked scores get the smallest finite number, so a
    query with no key averages all values.

    Args:
        sdpa: The function that is replaced; unused.
        query: (..., H, L, D).
        key: (..., G, S, D), G = H, or a divisor of H with `enable_gqa`.
        value: (..., G, S, E).
        attn_mask: Broadcastable to (..., H, L, S): boolean (True = attend) or additive.
        dropout_p: Probability with which a weight is dropped.
        is_causal: Whether query i sees keys 0..i only.
        scale: Factor of the scores; 1/sqrt(D) if None.
        enable_gqa: Whether each head of `key` and `value` serves H/G heads of `query`.

    Returns:
        (..., H, L, E), in the dtype of `query`.
    """
    del sdpa
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query, key.transpose(-2, -1)) * factor
    if is_causal:
        square = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~square, torch.finfo(scores.dtype).min)
    if attn_mask is not None:
        scores = scores + finite_minimum(attn_mask, scores.dtype).mask
    # Half types are summed in float32; float64 stays, for its smallest number is minus infinity in float32.
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores, dim=-1, dtype=wide).to(query.dtype)
    if dropout_p > 0.0:
        weights = torch.dropout(weights, dropout_p, train=True)
    return torch.matmul(weights, value)
