"""The dispatcher: which path a call takes on a release. Pure decisions, no arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from mpsdiag.emulation.releases import TWO_PASS_KEYS, VECTOR_QUERIES

if TYPE_CHECKING:
    from mpsdiag.emulation.call import AttentionCall
    from mpsdiag.emulation.releases import Release

Path = Literal["general", "vector_one_pass", "vector_two_pass", "prefill", "prefill_mpp"]

HALF = (torch.float16, torch.bfloat16)


def takes_operator(call: AttentionCall, release: Release, macos: int, *, dropout_ignored: bool) -> bool:
    """Whether the public function hands the call to the MPS operator, and not to the composite path."""
    if release.general == "none" or call.needs_grad:
        return False
    if call.dropout_p > 0.0 and release.dropout == "composite" and not dropout_ignored:
        return False
    return macos >= release.contiguous_below or all(x.is_contiguous() for x in call.tensors)


def choose_path(call: AttentionCall, release: Release, macos: int, *, prefill_disabled: bool) -> Path:
    """Which kernel the operator runs."""
    q, k, v = call.tensors
    queries, keys, dim = q.size(2), k.size(2), q.size(3)
    if k.size(3) != dim or v.size(3) != dim or not _heads_match(call, release):
        return "general"
    few = queries <= VECTOR_QUERIES
    if few and queries <= keys and dim in release.vector_dims and _vector_mask(call, release):
        # The host code also asks for 4096 keys with shared heads, which 1024 keys already cover.
        return "vector_two_pass" if keys >= TWO_PASS_KEYS else "vector_one_pass"
    if not few and keys > 0 and dim in release.prefill_dims and not prefill_disabled and _kernel_mask(call):
        mpp = macos >= 26 and q.dtype in HALF and dim in release.mpp_dims
        return "prefill_mpp" if mpp else "prefill"
    return "general"


def _heads_match(call: AttentionCall, release: Release) -> bool:
    """The kernels index batch and heads without broadcasting; only 2.13+ divide query heads by shared ones."""
    q, k, v = (x.shape[:2] for x in call.tensors)
    return q[0] == k[0] == v[0] and k[1] == v[1] and (q[1] == k[1] or release.shares_heads)


def _vector_mask(call: AttentionCall, release: Release) -> bool:
    if release.vector_everything:
        return _kernel_mask(call) and not (call.is_causal and call.mask is not None)
    return not call.is_causal and (call.mask is None or call.mask.dtype == torch.bool)


def _kernel_mask(call: AttentionCall) -> bool:
    return call.mask is None or call.mask.dtype in {torch.bool, call.query.dtype}
