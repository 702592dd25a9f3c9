"""G7: the prefill kernel on MetalPerformancePrimitives, for half types on macOS 26 (torch 2.14 and later).

Source: section 4 of the facts on MPS attention. As G6, but the scale is applied to the f32 scores; the
weights stay in f32 for the product with V.
"""

from __future__ import annotations

from torch import Tensor

from mpsdiag.emulation.g6_prefill import log2_scale, tiled_attention
from mpsdiag.emulation.online_softmax import grouped_scores

ROWS = 64


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
    """Attend as the MPP prefill kernel does; arguments and result as in `prefill`, tiles of 32 or 64 keys."""
    scores = grouped_scores(query.float(), key).mul_(log2_scale(scale))
    return tiled_attention(
        scores, query, value, mask, is_causal, rows=ROWS, block=block, propagates_nan=propagates_nan
    )
