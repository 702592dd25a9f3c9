"""G3: the MPSGraph of torch 2.10 and later. float32 from the first product to the last; fully masked rows give zeros.

The source multiplies query and key in their own dtype and casts afterwards, but a float16 product that
overflows does not reach the scores: the upstream regression test (head dimension 80, everything 256, products
of 5 million) passes on Macs. So the graph is taken to fold the cast into the product, and nothing is rounded
there.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from mpsdiag.emulation.generations.graph import CAUSAL_FILL, in_blocks
from mpsdiag.emulation.generations.rounding import (
    additive,
    all_minus_infinity,
    expand_heads,
    product,
    scale_or_default,
    widen,
)

if TYPE_CHECKING:
    from torch import Tensor


def graph_attention_f32(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    *,
    causal_group: int = 1,
    want_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention as the graph of 2.10+ computes it: float32 throughout, rounded once at the end.

    `causal_group` rows share the causal limit of the last of them: 1 is right, 4 is the defect of 2.10 to
    2.12.
    """
    key, value = expand_heads(key, value, query, enable_gqa)
    hidden = _later_keys(query.size(2), key.size(2), causal_group) if is_causal else None
    kernel = partial(_block, hidden=hidden, scale=scale_or_default(scale, query))
    return in_blocks(kernel, query, key, value, mask, want_weights=want_weights)


def _later_keys(rows: int, columns: int, group: int) -> Tensor:
    """Bool `(rows, columns)`: True where the key is later than the last row of the query's group."""
    last_of_group = torch.arange(rows) // group * group + group - 1
    return torch.arange(columns) > last_of_group.unsqueeze(-1)


def _block(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, hidden: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    dtype = query.dtype
    scores = product(query, key.mT).mul_(scale)
    if hidden is not None:
        scores.masked_fill_(hidden, CAUSAL_FILL)
    elif mask is not None:
        scores += widen(additive(mask, dtype))
    dead = all_minus_infinity(scores)
    weights = torch.softmax(scores, dim=-1).masked_fill_(dead, 0.0)
    return (weights @ widen(value)).to(dtype), weights
