"""G6 and G7: the prefill kernels, for more than 8 queries (torch 2.13 and later).

G6 works on simdgroup matrices; G7, for half types on macOS 26 (2.14 and later), on Metal Performance Primitives.
Scores are in units of log2, so that exp2 gives the weights. Keys come in tiles; a tile is read whole, so a masked
key in it still contributes 0 * V, which is NaN where V is not finite. With `is_causal`, tiles fully above the
diagonal are not visited. The weights stay in f32 for the product with V. Of G7 that is what the shipped code
executed on a CPU does; its descriptor asks for relaxed precision, so on hardware it is not proven.
"""

import torch
from torch import Tensor

from mpsdiag.emulation.generations.online_softmax import (
    NEVER,
    drop_leading_nan_tiles,
    grouped_scores,
    merge_heads,
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
    scales_query: bool = False,
    propagates_nan: bool = True,
) -> Tensor:
    """Attend as the prefill kernel on simdgroup matrices does (G6), with tiles of `block` keys.

    By default the tile is the kernel's own for the head dim: 32 up to 96, 16 at 128, 8 at 256. With
    `scales_query` the factor, rounded to T, multiplies the query in T (2.13), otherwise the f32 scores.
    `propagates_nan=False` is IEEE fmax, which drops a NaN that is met before any other score.
    """
    head_dim, length = query.shape[-1], query.shape[-2]
    if block is None:
        block = 32 if head_dim < 128 else 16 if head_dim < 256 else 8
    factor = log2_scale(scale)
    if scales_query:
        scores = grouped_scores((query * torch.tensor(factor, dtype=query.dtype)).float(), key)
    else:
        scores = grouped_scores(query.float(), key).mul_(factor)
    ends = _ends(length, 16 if head_dim >= 256 else 32).clamp_max(length)
    visited = visited_keys(ends, key.shape[2], block) if is_causal else None
    return tiled_attention(scores, value, mask, is_causal, visited, block, propagates_nan).to(query.dtype)


def prefill_mpp(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    *,
    block: int = 32,
    propagates_nan: bool = True,
) -> Tensor:
    """Attend as the MPP prefill kernel does (G7); arguments and result as in `prefill`, with tiles of 64 queries."""
    scores = grouped_scores(query.float(), key).mul_(log2_scale(scale))
    # Unlike G6, the end of a tile of queries is not cut at the number of queries.
    visited = visited_keys(_ends(query.shape[-2], 64), key.shape[2], block) if is_causal else None
    return tiled_attention(scores, value, mask, is_causal, visited, block, propagates_nan).to(query.dtype)


def log2_scale(scale: float) -> float:
    """Multiply scale by log2(e), both rounded to f32 and their product too."""
    return (torch.tensor(scale, dtype=torch.float32) * LOG2E).item()


def _ends(length: int, rows: int) -> Tensor:
    """For each query the end of its tile of `rows` queries."""
    return (torch.arange(length) // rows + 1) * rows


def visited_keys(ends: Tensor, keys: int, block: int) -> Tensor:
    """Say which keys a causal row reads: those of every tile of `block` keys that begins before `ends`."""
    return torch.arange(keys, device=ends.device) < ((ends + block - 1) // block * block)[:, None]


def tiled_attention(
    scores: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    visited: Tensor | None,
    block: int,
    propagates_nan: bool,
) -> Tensor:
    """Mask scores in units of log2, take the softmax by exp2 and sum the values, as a walk over tiles does."""
    length, keys = scores.shape[-2:]
    if is_causal:
        scores.masked_fill_(scores.new_ones(length, keys, dtype=torch.bool).triu_(1), NEVER)
    if mask is not None and mask.dtype == torch.bool:
        scores.masked_fill_(~mask, NEVER)
    elif mask is not None:
        # A fused multiply-add in f32, as in the kernel: finfo.min of f32 and bf16 becomes -inf here.
        scores.add_(mask, alpha=LOG2E)
    top = scores.amax(-1, keepdim=True)
    if not propagates_nan and bool(top.isnan().any()):
        scores = drop_leading_nan_tiles(scores, block)
        top = scores.amax(-1, keepdim=True)
    dead = top == NEVER
    weights = scores.sub_(top.masked_fill_(dead, 0.0)).exp2_()
    total = weights.sum(-1, keepdim=True).masked_fill_(dead, 1.0)
    heads = value.shape[1]
    read = None if visited is None else merge_heads(visited.expand(weights.shape), heads)
    summed = weighted_sum(merge_heads(weights, heads), value.float(), read)
    return summed.reshape(*weights.shape[:3], value.shape[-1]) / total
