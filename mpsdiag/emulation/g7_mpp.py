"""G7: the prefill kernel on MetalPerformancePrimitives, for half types on macOS 26 (torch 2.14 and later).

Source: section 4 of the facts on MPS attention. As G6, but the scale is applied to the f32 scores; the
weights stay in f32 for the product with V.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpsdiag.emulation.g6_prefill import log2_scale, tiled_attention, visited_keys
from mpsdiag.emulation.online_softmax import grouped_scores

ROWS = 64
"""Queries in a tile."""


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
    """Attend as the MPP prefill kernel does; arguments and result as in `prefill`, with tiles of 64 queries."""
    scores = grouped_scores(query.float(), key).mul_(log2_scale(scale))
    length, keys = scores.shape[-2:]
    # Unlike G6, the end of a tile of queries is not cut at the number of queries.
    ends = (torch.arange(length, device=scores.device) // ROWS + 1) * ROWS
    visited = visited_keys(ends, keys, block) if is_causal else None
    return tiled_attention(scores, value, mask, is_causal, visited, block, propagates_nan).to(query.dtype)
