"""G4: the vector ("decode") kernel in one pass, for short queries and few keys (torch 2.8 and later).

Source: section 4 of the facts on MPS attention. Each query row walks over 32 key groups (key j belongs to
group j mod 32) in f32, with an online softmax in each group; then the groups are combined.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpsdiag.emulation.generations.online_softmax import (
    NEVER,
    drop_leading_nan,
    grouped_scores,
    merge_heads,
    spoil_leading_never,
    weighted_sum,
)

GROUPS = 32
EMPTY_SUM = 1e-6
"""What a sum of exactly 0 is replaced by before the division."""


def vector_one_pass(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    *,
    guarded: bool,
    propagates_nan: bool,
) -> Tensor:
    """Attend as the one-pass vector kernel does.

    `guarded` kernels (torch 2.13+) guard against a maximum of -inf; in others a fully masked row gives NaN.
    With `propagates_nan` (torch 2.14+) the running maximum keeps NaN; IEEE fmax, before, drops it.
    """
    scores, skipped = vector_scores(
        query, key, mask, is_causal, scale, GROUPS, guarded=guarded, propagates_nan=propagates_nan
    )
    top = scores.amax(-1, keepdim=True)
    if guarded:
        # Fully masked rows: exp(-inf - 0) = 0 for every key, and the sum of 0 is caught below.
        top.masked_fill_(top == NEVER, 0.0)
    weights = scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    heads = key.shape[1]
    read = None if skipped is None else merge_heads(~skipped.expand(weights.shape), heads)
    summed = weighted_sum(merge_heads(weights, heads), value.float(), read)
    summed = summed.reshape(*query.shape[:3], value.shape[-1])
    return (summed / total.masked_fill(total == 0, EMPTY_SUM)).to(query.dtype)


def vector_scores(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    groups: int,
    *,
    guarded: bool,
    propagates_nan: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compute the scores of the vector kernels, NaN where the walk over the key groups makes a weight NaN."""
    scores = grouped_scores(query.float() * scale, key)
    skipped = None
    if mask is not None and mask.dtype == torch.bool:
        skipped = ~mask
    elif mask is not None:
        scores += mask
    if is_causal:
        later = scores.new_ones(scores.shape[-2:], dtype=torch.bool).triu_(1)
        skipped = later if skipped is None else skipped | later
    if skipped is not None:
        scores.masked_fill_(skipped, NEVER)
    if not guarded:
        scores = spoil_leading_never(scores, skipped, groups)
    elif not propagates_nan:
        scores = drop_leading_nan(scores, groups)
    return scores, skipped
