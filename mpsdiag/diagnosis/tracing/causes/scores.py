"""The scores of an attention, before they are scaled and masked: what overflows first in half precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def scores_of(named: Mapping[str, Any]) -> Tensor | None:
    """|q . k| in float64 on the CPU, (..., heads, queries, keys); None if there is no query or key.

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
