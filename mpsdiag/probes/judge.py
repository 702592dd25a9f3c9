"""Judge an output of attention by the bound of `sdpa/float64.py`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mpsdiag.sdpa.float64 import allowed_error, largest_error

Scaling = Literal["scores", "inputs"]


def composite_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    scaled: Scaling = "scores",
) -> Tensor:
    """Attend step by step in the inputs' own dtype, rounding after every step, as eager attention does.

    The softmax is taken in float32 at least and rounded, as in transformers' eager attention. Keys and values with
    fewer heads are repeated. Rows that may attend to nothing give zeros, with finite gradients.
    """
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    if query.dim() >= 3 and key.shape[-3] not in {1, query.shape[-3]}:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    if scaled == "scores":
        scores = _product(query, key.transpose(-2, -1)) * factor
    else:
        root = math.sqrt(abs(factor))
        scores = _product(query * math.copysign(root, factor), (key * root).transpose(-2, -1))
    if is_causal:
        lower = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~lower, -math.inf)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        else:
            scores = scores + attn_mask.to(scores.dtype)
    dead = (scores == -math.inf).all(-1, keepdim=True)
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores.masked_fill(dead, 0.0).to(wide), dim=-1).to(query.dtype)
    return _product(weights.masked_fill(dead, 0.0), value)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply in float32 at least and round once, as half-precision products do, only faster on a CPU."""
    wide = torch.promote_types(left.dtype, torch.float32)
    return (left.to(wide) @ right.to(wide)).to(left.dtype)


def plain_errors(
    reference: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    rows: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> list[float]:
    """Measure the finite errors of plain attention in the inputs' dtype, in each of its ways.

    Several ways, because a single one is sometimes right by luck: scaled before or after the product (float16
    overflows in one where it does not in the other), and in float32 with contiguous heads or transposed ones, where
    the CPU sums in blocks or one after the other, as GPUs do.
    """
    layouts = [tuple(tensor.contiguous() for tensor in (query, key, value))]
    if query.dtype == torch.float32 and query.dim() == 4:
        layouts.append(tuple(transposed(tensor) for tensor in (query, key, value)))
    errors = []
    for (q, k, v), way in itertools.product(layouts, get_args(Scaling)):
        output = composite_attention(q, k, v, attn_mask, is_causal=is_causal, scale=scale, scaled=way)
        errors.append(largest_error(output, reference, rows))
    return [error for error in errors if math.isfinite(error)]


def transposed(tensor: Tensor) -> Tensor:
    """Give the same (B, H, L, D) values, laid out in memory as (B, L, H, D), as models hand them over."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


@dataclass(frozen=True)
class Yardstick:
    """A float64 reference (..., L, Dv) on the CPU and the error allowed against it, see `sdpa/float64.py`."""

    reference: Tensor
    bound: float

    @classmethod
    def of(cls, reference: Tensor, dtype: torch.dtype, errors: Sequence[float]) -> Yardstick:
        """Make the rule for one output."""
        return cls(reference, allowed_error(reference, dtype, errors))

    def judge(self, output: Tensor, rows: Tensor | None = None) -> tuple[bool, str, float]:
        """Say whether `output` is right, what it is in a word or two, and how far off."""
        if output.shape != self.reference.shape:
            return False, f"shape {tuple(output.shape)} instead of {tuple(self.reference.shape)}", math.nan
        error = largest_error(output, self.reference, rows)
        if math.isnan(error):
            return False, "NaN" if bool(output.isnan().any()) else "inf", error
        if error > self.bound:
            return False, "wrong values", error
        return True, "right", error
