"""Parts shared by the generations: scales, heads, masks and rounding."""

import math

import torch
from torch import Tensor

NEGATIVE_INFINITY = float("-inf")


def scale_or_default(scale: float | None, query: Tensor) -> float:
    """The factor on the scores: as given, or `1 / sqrt(D)`."""
    return 1.0 / math.sqrt(query.size(-1)) if scale is None else scale


def product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product with float32 sums, in float32 (float64 stays float64)."""
    return widen(left) @ widen(right)


def widen(tensor: Tensor) -> Tensor:
    """Half types as float32; float32 and float64 unchanged."""
    return tensor.float() if tensor.dtype in {torch.float16, torch.bfloat16} else tensor


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The values of `tensor` rounded to `dtype`, but kept in the wider dtype for the next step."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype).to(tensor.dtype)


def rounded_number(number: float, dtype: torch.dtype) -> float:
    """One number rounded to `dtype`; beyond its range, an infinity."""
    return float(torch.tensor(number, dtype=torch.float64).to(dtype))


def expand_heads(key: Tensor, value: Tensor, query: Tensor, enable_gqa: bool) -> tuple[Tensor, Tensor]:
    """Repeat key and value heads so that each query head has its own (grouped-query attention)."""
    if not enable_gqa:
        return key, value
    heads = query.size(-3)
    return (
        key.repeat_interleave(heads // key.size(-3), dim=-3),
        value.repeat_interleave(heads // value.size(-3), dim=-3),
    )


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as 0 and -inf in `dtype`, as the public function converts it; others as they are."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, NEGATIVE_INFINITY)


def all_minus_infinity(scores: Tensor) -> Tensor:
    """Bool `(..., L, 1)`: True for the rows `(..., L, S)` in which every score is -inf; NaN does not count."""
    if not scores.size(-1):
        return torch.ones(*scores.shape[:-1], 1, dtype=torch.bool)
    return scores.amax(dim=-1, keepdim=True) == NEGATIVE_INFINITY
