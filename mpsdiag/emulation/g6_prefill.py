"""G6: the prefill kernel on simdgroup matrices, for more than 8 queries (torch 2.13 and later).

Source: section 4 of the facts on MPS attention. Scores are in units of log2, so that exp2 gives the weights;
the query is multiplied by scale * log2(e) in its own dtype beforehand. Keys come in tiles; a tile is read
whole, so a masked key in it still contributes 0 * V, which is NaN where V is not finite. With `is_causal`,
tiles fully above the diagonal are not visited.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpsdiag.emulation.online_softmax import (
    NEVER,
    drop_leading_nan_tiles,
    grouped_scores,
    merge_heads,
    skipped_keys,
    weighted_sum,
)

LOG2E = 1.44269504089


def prefill(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    *,
    block: int | None = None,
    propagates_nan: bool = True,
) -> Tensor:
    """Attend as the prefill kernel does.

    Args:
        query: (B, Hq, L, D), dtype T.
        key: (B, Hkv, S, D), dtype T, S > 0.
        value: (B, Hkv, S, Dv), dtype T.
        mask: None, bool (True = may attend) or float (added), expanded to (B, Hq, L, S).
        is_causal: A query attends to no key after its own index.
        scale: What scores are multiplied by.
        block: Keys in a tile; None takes the kernel's own for the head dim: 32 up to 96, 16 at 128, 8 at 256.
        propagates_nan: A maximum keeps NaN; False is IEEE fmax, which drops a NaN met before any other score.

    Returns:
        (B, Hq, L, Dv), dtype T.
    """
    head_dim = query.shape[-1]
    if block is None:
        block = 32 if head_dim < 128 else 16 if head_dim < 256 else 8
    factor = torch.tensor(log2_scale(scale)).to(query.dtype).item()
    scores = grouped_scores((query * factor).float(), key)
    rows = 16 if head_dim >= 256 else 32
    return tiled_attention(
        scores, query, value, mask, is_causal, rows=rows, block=block, propagates_nan=propagates_nan
    )


def log2_scale(scale: float) -> float:
    """Multiply scale by log2(e), both rounded to f32 and their product too."""
    return (torch.tensor(scale, dtype=torch.float32) * LOG2E).item()


def tiled_attention(
    scores: Tensor,
    query: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    *,
    rows: int,
    block: int,
    propagates_nan: bool,
) -> Tensor:
    """Mask scores in units of log2, take the softmax by exp2 and sum the values, tile by tile.

    Args:
        scores: (B, Hq, L, S), f32; overwritten.
        query: Gives the dtype of the result.
        value: (B, Hkv, S, Dv).
        mask: As in `prefill`.
        is_causal: As in `prefill`.
        rows: Queries in a tile.
        block: Keys in a tile.
        propagates_nan: As in `prefill`.
    """
    length, keys = scores.shape[-2:]
    skipped = skipped_keys(mask, is_causal, length, keys)
    if mask is not None and mask.dtype != torch.bool:
        # f32 after the multiplication: finfo.min of f32 and bf16 becomes -inf here.
        scores.add_(mask, alpha=LOG2E)
    if skipped is not None:
        scores.masked_fill_(skipped, NEVER)
    if not propagates_nan:
        scores = drop_leading_nan_tiles(scores, block)
    top = scores.amax(-1, keepdim=True)
    dead = top == NEVER
    weights = scores.sub_(top.masked_fill_(dead, 0.0)).exp2_()
    total = weights.sum(-1, keepdim=True).masked_fill_(dead, 1.0)
    heads = value.shape[1]
    read = None
    if is_causal:
        visited = _visited(length, keys, rows, block)
        read = merge_heads(visited.expand(weights.shape), heads)
    summed = weighted_sum(merge_heads(weights, heads), value.float(), read)
    return (summed.reshape(*query.shape[:3], value.shape[-1]) / total).to(query.dtype)


def _visited(length: int, keys: int, rows: int, block: int) -> Tensor:
    """Say which keys a causal row's tiles cover: bool (L, S)."""
    row = torch.arange(length)
    last = ((row // rows + 1) * rows).clamp_max(length)
    end = (last + block - 1) // block * block
    return torch.arange(keys) < end[:, None]
