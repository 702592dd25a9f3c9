"""Parts shared by the hand-written Metal kernels (G4 to G7): scores, keys that are never read, the weighted sum.

The kernels walk over the keys with a running maximum and rescale the sums so far ("online" softmax). In exact
arithmetic this gives the same sums as using the final maximum from the start, and in f32 it differs by a few units
in the last place, as the order of summation on the GPU does. So finite numbers are computed in closed form. The
walk does decide where a NaN or an infinity ends up; the functions below determine that with prefix operations
along the walk, so that the outcome is the same as the walk's.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

NEVER = float("-inf")


def grouped_scores(query: Tensor, key: Tensor) -> Tensor:
    """Multiply (B, Hq, L, D) in f32 and (B, Hkv, S, D) to (B, Hq, L, S); head h reads kv head h // (Hq / Hkv)."""
    scores = merge_heads(query, key.shape[1]) @ key.float().transpose(-2, -1)
    return scores.reshape(*query.shape[:3], key.shape[2])


def merge_heads(per_query_head: Tensor, kv_heads: int) -> Tensor:
    """View (B, Hq, L, X) as (B, Hkv, Hq / Hkv * L, X), so that K and V need no repetition."""
    batch, _, _, width = per_query_head.shape
    return per_query_head.reshape(batch, kv_heads, -1, width)


def weighted_sum(weights: Tensor, value: Tensor, read: Tensor | None) -> Tensor:
    """Sum weights (..., R, K) @ value (..., K, Dv) in f32; keys not `read` (bool, None = all are) add not even 0 * NaN.

    A key that is read follows IEEE: weight 0 times NaN or infinity is NaN.
    """
    total = weights @ value
    if bool(total.isfinite().all()) or bool(value.isfinite().all()):
        return total
    # Some value is not finite, and a matrix product would spread it to rows that never read it.
    total = weights @ value.nan_to_num(0.0, 0.0, 0.0)
    was_read = torch.ones_like(weights) if read is None else read.to(weights.dtype)
    positive = was_read * (weights > 0)
    up = positive @ (value == float("inf")).to(weights.dtype) > 0
    down = positive @ (value == NEVER).to(weights.dtype) > 0
    nothing = (was_read * (weights == 0)) @ value.isinf().to(weights.dtype) > 0
    spoiled = was_read @ value.isnan().to(weights.dtype) > 0
    spoiled |= nothing | (up & down) | total.isnan()
    total = total.masked_fill(up, float("inf")).masked_fill(down, NEVER)
    return total.masked_fill(spoiled, float("nan"))


def summed_by_heads(weights: Tensor, value: Tensor, read: Tensor | None) -> Tensor:
    """`weighted_sum` of (B, Hq, L, S) and (B, Hkv, S, Dv), with `read` broadcastable to the weights: (B, Hq, L, Dv)."""
    heads = value.shape[1]
    was_read = None if read is None else merge_heads(read.expand(weights.shape), heads)
    summed = weighted_sum(merge_heads(weights, heads), value.float(), was_read)
    return summed.reshape(*weights.shape[:3], value.shape[-1])


def in_steps(per_key: Tensor, stride: int, fill: float) -> Tensor:
    """Pad (..., S) with `fill`, view it as (..., steps, stride): key j is at (j // stride, j mod stride)."""
    missing = -per_key.shape[-1] % stride
    if missing:
        per_key = pad(per_key, (0, missing), value=fill)
    return torch.unflatten(per_key, -1, (-1, stride))


def _begun(scores: Tensor, lanes: int) -> Tensor:
    """For (..., S), bool: is there a score above -inf at this key or at an earlier one of its group?"""
    live = in_steps(scores > NEVER, lanes, fill=False).cumsum(-2) > 0
    return live.flatten(-2)[..., : scores.shape[-1]]


def drop_leading_nan(scores: Tensor, lanes: int) -> Tensor:
    """Model a maximum that drops NaN (IEEE fmax) together with the guard for an all -inf beginning.

    A NaN score met while the lane's maximum is still -inf leaves it there, and the guard then gives that key
    weight 0: the NaN vanishes. A NaN met later becomes a NaN weight and spoils the row.
    """
    nan = scores.isnan()
    if not bool(nan.any()):
        return scores
    return scores.masked_fill(nan & ~_begun(scores, lanes), NEVER)


def spoil_leading_never(scores: Tensor, skipped: Tensor | None, lanes: int) -> Tensor:
    """Model kernels without the guard: a key read with score -inf while the lane's maximum is -inf gives NaN.

    The weight is exp(-inf - (-inf)) = NaN. Arguments and result as in `drop_leading_nan`.
    """
    never = scores == NEVER
    if skipped is not None:
        never = never & ~skipped
    if not bool(never.any()):
        return scores
    return scores.masked_fill(never & ~_begun(scores, lanes), float("nan"))


def drop_leading_nan_tiles(scores: Tensor, block: int) -> Tensor:
    """As `drop_leading_nan` for kernels that take the maximum of a tile of `block` keys at a time.

    A NaN vanishes when its own tile and all before it hold nothing but NaN and -inf.
    """
    nan = scores.isnan()
    if not bool(nan.any()):
        return scores
    live = in_steps(scores > NEVER, block, fill=False).any(-1).cumsum(-1) > 0
    begun = live.repeat_interleave(block, -1)[..., : scores.shape[-1]]
    return scores.masked_fill(nan & ~begun, NEVER)
