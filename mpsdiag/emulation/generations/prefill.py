"""G6 and G7: the prefill kernels, for more than 8 queries (torch 2.13 and later).

G6 works on simdgroup matrices; G7, for half types on macOS 26 (2.14 and later), on Metal Performance Primitives.
Scores are in units of log2, so that exp2 gives the weights. Keys come in tiles; a whole tile is read, so a masked
key in it still contributes 0 * V, which is NaN where V is not finite. With `is_causal`, tiles fully above the
diagonal are not visited. The weights stay in f32 for the product with V. For G7 this is what the shipped code does
when executed on a CPU; its descriptor requests relaxed precision, so on hardware this is not proven.
"""

import torch
from torch import Tensor

from mpsdiag.emulation.call import AttentionCall
from mpsdiag.emulation.generations.online_softmax import NEVER, drop_leading_nan_tiles, grouped_scores, summed_by_heads
from mpsdiag.emulation.generations.rounding import scale_or_default

LOG2E = 1.44269504089


def prefill(
    call: AttentionCall,
    *,
    mpp: bool = False,
    block: int | None = None,
    scales_query: bool = False,
    propagates_nan: bool = True,
) -> Tensor:
    """Attend as a prefill kernel does: that on simdgroup matrices (G6), or that on MPP (`mpp`, G7).

    Keys come in tiles of `block`; by default the kernel's own: 32, and in G6 16 at a head dim of 128, 8 at 256. With
    `scales_query` the factor, rounded to T, multiplies the query in T (2.13), otherwise the f32 scores.
    `propagates_nan=False` is IEEE fmax, which drops a NaN that is met before any other score.
    """
    query, key, value = call.tensors
    length, keys, head_dim = query.shape[-2], key.shape[-2], query.shape[-1]
    rows = 64 if mpp else 16 if head_dim >= 256 else 32
    block = block or (32 if mpp or head_dim < 128 else 16 if head_dim < 256 else 8)
    # Both factors are rounded to f32, and their product too.
    factor = (torch.tensor(scale_or_default(call.scale, query), dtype=torch.float32) * LOG2E).item()
    if scales_query:
        scores = grouped_scores((query * torch.tensor(factor, dtype=query.dtype)).float(), key)
    else:
        scores = grouped_scores(query.float(), key).mul_(factor)
    visited = None
    if call.is_causal:
        scores.masked_fill_(scores.new_ones(length, keys, dtype=torch.bool).triu_(1), NEVER)
        visited = _visited_keys(length, keys, rows, block, cut=not mpp)
    if call.mask is not None and call.mask.dtype == torch.bool:
        scores.masked_fill_(~call.mask, NEVER)
    elif call.mask is not None:
        # A fused multiply-add in f32, as in the kernel: finfo.min of f32 and bf16 becomes -inf here.
        scores.add_(call.mask, alpha=LOG2E)
    top = scores.amax(-1, keepdim=True)
    if not propagates_nan and bool(top.isnan().any()):
        scores = drop_leading_nan_tiles(scores, block)
        top = scores.amax(-1, keepdim=True)
    dead = top == NEVER
    weights = scores.sub_(top.masked_fill_(dead, 0.0)).exp2_()
    total = weights.sum(-1, keepdim=True).masked_fill_(dead, 1.0)
    return (summed_by_heads(weights, value, visited) / total).to(query.dtype)


def _visited_keys(length: int, keys: int, rows: int, block: int, *, cut: bool) -> Tensor:
    """Which keys a causal row reads: those of every tile of `block` keys that begins before its tile of `rows` ends."""
    ends = (torch.arange(length) // rows + 1) * rows
    ends = ends.clamp_max(length) if cut else ends  # G6 cuts the last tile of queries at their number
    return torch.arange(keys) < ((ends + block - 1) // block * block)[:, None]
