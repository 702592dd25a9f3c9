"""The scores of an attention, by its arguments: how large they are before the mask, and where it leaves none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mpsdiag.sdpa import dead_rows
from mpsdiag.tracing.watch.events import Call
from mpsdiag.tracing.watch.operations import SDPA


def scores_of(named: Mapping[str, Any]) -> Tensor | None:
    """|q . k| in float64 on the CPU, (..., heads, queries, keys); None if there is no query or key.

    Unscaled: that is what overflows first in half precision.

    Args:
        named: The arguments of `scaled_dot_product_attention`; heads of the key may be shared.
    """
    query, key = named.get("query"), named.get("key")
    if not isinstance(query, Tensor) or not isinstance(key, Tensor):
        return None
    q, k = (tensor.detach().cpu().double() for tensor in (query, key))
    if q.dim() >= 3 and q.shape[-3] != k.shape[-3] and q.shape[-3] % k.shape[-3] == 0:
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3)
    return (q @ k.mT).abs()


def rows_over_nothing(call: Call, result: Tensor) -> Tensor | None:
    """Bool, of the shape of the result without its last dimension: the mask leaves this row no key.

    A row of the lowest finite number of float16 counts too: with a negative score it is minus infinity.

    Args:
        call: SDPA or a softmax over the last dimension.
        result: What it gave, `(..., queries, channels or keys)`.
    """
    named = call.named
    if call.operation == SDPA:
        mask = named.get("attn_mask")
        if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
            return None
        dead = dead_rows(mask)
        if mask.dtype == torch.float16:
            dead = dead | (mask <= torch.finfo(mask.dtype).min).all(-1)
        return dead.expand(result.shape[:-1])
    scores = next((value for value in named.values() if isinstance(value, Tensor)), None)
    if scores is None or scores.shape != result.shape:
        return None
    return (scores == float("-inf")).all(-1)
