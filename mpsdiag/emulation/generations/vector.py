"""G4 and G5: the vector ("decode") kernels for short queries, in one pass and in two (torch 2.8 and later).

Source: section 4 of the facts on MPS attention. In one pass, for few keys, each query row walks over 32 key groups (key
j belongs to group j mod 32) in f32, with an online softmax in each group; then the groups are combined. In two passes
keys are spread over 32 blocks of 8 groups: block b, group g takes the keys j with j mod 256 == 8 b + g. A block starts
its maximum at -1e9 and stores its partial sum in the dtype of the query; the second pass combines the blocks. So a row
whose true maximum is below about -1e9 gives exactly 0.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from mpsdiag.emulation.call import AttentionCall
from mpsdiag.emulation.generations.online_softmax import (
    NEVER,
    drop_leading_nan,
    grouped_scores,
    in_steps,
    merge_heads,
    spoil_leading_never,
    summed_by_heads,
    weighted_sum,
)
from mpsdiag.emulation.generations.rounding import scale_or_default

GROUPS = 32  # of one pass
BLOCKS, GROUPS_IN_A_BLOCK = 32, 8  # of two
STRIDE = BLOCKS * GROUPS_IN_A_BLOCK
LOWEST_MAXIMUM = -1e9
EMPTY_SUM = 1e-6
"""Replacement for a sum of exactly 0 before the division."""


def vector_one_pass(call: AttentionCall, *, guarded: bool, propagates_nan: bool) -> Tensor:
    """Compute attention as the one-pass vector kernel does.

    `guarded` kernels (torch 2.13+) guard against a maximum of -inf; in others a fully masked row gives NaN.
    With `propagates_nan` (torch 2.14+) the running maximum keeps NaN; IEEE fmax, before, drops it.
    """
    scores, skipped = vector_scores(call, GROUPS, guarded=guarded, propagates_nan=propagates_nan)
    top = scores.amax(-1, keepdim=True)
    if guarded:
        # Fully masked rows: exp(-inf - 0) = 0 for every key, and the sum of 0 is caught below.
        top.masked_fill_(top == NEVER, 0.0)
    weights = scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    summed = summed_by_heads(weights, call.value, None if skipped is None else ~skipped)
    return (summed / total.masked_fill(total == 0, EMPTY_SUM)).to(call.query.dtype)


def vector_scores(
    call: AttentionCall, groups: int, *, guarded: bool, propagates_nan: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute the scores of the vector kernels, NaN where the walk over the key groups makes a weight NaN."""
    scores = grouped_scores(call.query.float() * scale_or_default(call.scale, call.query), call.key)
    skipped = None
    if call.mask is not None and call.mask.dtype == torch.bool:
        skipped = ~call.mask
    elif call.mask is not None:
        scores += call.mask
    if call.is_causal:
        later = scores.new_ones(scores.shape[-2:], dtype=torch.bool).triu_(1)
        skipped = later if skipped is None else skipped | later
    if skipped is not None:
        scores.masked_fill_(skipped, NEVER)
    if not guarded:
        scores = spoil_leading_never(scores, skipped, groups)
    elif not propagates_nan:
        scores = drop_leading_nan(scores, groups)
    return scores, skipped


def vector_two_pass(
    call: AttentionCall, *, guarded: bool, propagates_nan: bool, maxima_behind: int | None = None
) -> Tensor:
    """Compute attention as the two-pass vector kernel does.

    Arguments and result as in `vector_one_pass`; for `maxima_behind` see `_read_by_the_second_pass`.
    """
    query, key, value = call.tensors
    scores, skipped = vector_scores(call, STRIDE, guarded=guarded, propagates_nan=propagates_nan)
    stepped = _in_blocks(scores, fill=NEVER)
    top = stepped.amax((-3, -1)).clamp_min_(LOWEST_MAXIMUM)
    weights = stepped.sub_(top[..., None, :, None]).exp_()
    sums = weights.sum((-3, -1))
    if maxima_behind is not None:
        top = _read_by_the_second_pass(sums, top, maxima_behind)
    share = (top - top.amax(-1, keepdim=True)).exp_()
    total = (sums * share).sum(-1, keepdim=True)

    read = None if skipped is None else ~skipped.expand(scores.shape)
    if query.dtype == torch.float32:
        # The partial sums are stored as they are, so the blocks need not be summed apart.
        weights = (weights * share[..., None, :, None]).flatten(-3)[..., : key.shape[2]]
        summed = summed_by_heads(weights, value, read)
    else:
        heads = key.shape[1]
        read = None if read is None else _by_block(read, heads, fill=False)
        partial = weighted_sum(_by_block(weights.flatten(-3), heads, fill=0.0), _value_by_block(value), read)
        # They travel between the passes in T: half types round here, and f16 may overflow.
        partial = partial.to(query.dtype).float()
        summed = (partial * merge_heads(share, heads).transpose(-2, -1).unsqueeze(-1)).sum(2)
        summed = summed.reshape(*query.shape[:3], value.shape[-1])
    return (summed / total.masked_fill(total == 0, EMPTY_SUM)).to(query.dtype)


def _read_by_the_second_pass(sums: Tensor, maxima: Tensor, gap: int) -> Tensor:
    """The maxima, where both buffers have half the size of what is written to them (SDPA004).

    Both are f32, but the buffers are allocated in a half type: the upper half of the sums lies in what follows. If
    the allocator puts the maxima right behind, or `gap` numbers behind, the sums overwrite the maxima of the lower
    half of the rows, because rows are processed in order.
    """
    written, behind = maxima.flatten(), sums.flatten()
    half = len(behind) // 2 + gap
    written[: len(behind) - half] = behind[half:]
    return written.view(maxima.shape)


def _in_blocks(per_key: Tensor, fill: float) -> Tensor:
    """Pad (..., S) with `fill` and view it as (..., steps, 32, 8)."""
    return torch.unflatten(in_steps(per_key, STRIDE, fill), -1, (BLOCKS, GROUPS_IN_A_BLOCK))


def _by_block(per_key: Tensor, kv_heads: int, fill: float) -> Tensor:
    """Sort (B, Hq, L, S) by block: (B, Hkv, 32, Hq / Hkv * L, steps * 8)."""
    stepped = _in_blocks(merge_heads(per_key, kv_heads), fill)
    return stepped.permute(0, 1, 4, 2, 3, 5).flatten(-2)


def _value_by_block(value: Tensor) -> Tensor:
    """Sort (B, Hkv, S, Dv) by block, in f32: (B, Hkv, 32, steps * 8, Dv)."""
    missing = -value.shape[2] % STRIDE
    padded = pad(value, (0, 0, 0, missing)) if missing else value
    stepped = torch.unflatten(padded, 2, (-1, BLOCKS, GROUPS_IN_A_BLOCK))
    by_block = stepped.permute(0, 1, 3, 2, 4, 5)
    return by_block.to(torch.float32, memory_format=torch.contiguous_format).flatten(3, 4)
