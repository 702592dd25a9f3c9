"""One call of attention as it reaches the dispatcher, and which path it takes on a release. No arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mpsdiag.emulation.generations.rounding import additive
from mpsdiag.emulation.releases import TWO_PASS_KEYS, VECTOR_QUERIES, Release


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """The arguments of `scaled_dot_product_attention` by name; shapes as in `generations`."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value."""
        return self.query, self.key, self.value

    @property
    def on_cpu(self) -> bool:
        """Whether all tensors are plain CPU tensors; only these are emulated."""
        mask = () if self.mask is None else (self.mask,)
        return all(x.device.type == "cpu" and not x.is_nested for x in (*self.tensors, *mask))

    @property
    def needs_grad(self) -> bool:
        """Whether grad mode is on and query, key or value requires a gradient; the mask does not count."""
        return torch.is_grad_enabled() and any(x.requires_grad for x in self.tensors)

    @property
    def well_formed(self) -> bool:
        """Whether the call passes torch's own checks; if not, torch reports the problem."""
        q = self.query
        same = all(x.dtype == q.dtype and x.dim() >= 2 for x in self.tensors)
        return same and (self.mask is None or self.mask.dtype in {torch.bool, torch.float32, q.dtype})

    def as_autocast(self, dtype: torch.dtype) -> AttentionCall:
        """The call with its tensors in the dtype of an autocast region, to which this function is subject."""

        def cast(tensor: Tensor) -> Tensor:
            narrow = tensor.is_floating_point() and tensor.dtype != torch.float64
            return tensor.to(dtype) if narrow else tensor

        mask = None if self.mask is None else cast(self.mask)
        return replace(self, query=cast(self.query), key=cast(self.key), value=cast(self.value), mask=mask)

    def with_additive_mask(self) -> AttentionCall:
        """The call with a bool mask converted to 0 and -inf in the query's dtype, as the public function does first."""
        return self if self.mask is None else replace(self, mask=additive(self.mask, self.query.dtype))


def public_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> AttentionCall:
    """Read the arguments of `F.scaled_dot_product_attention`."""
    return AttentionCall(*args, **{"mask" if name == "attn_mask" else name: value for name, value in kwargs.items()})


def operator_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> AttentionCall:
    """Read the arguments of `aten::_scaled_dot_product_attention_math_for_mps`; its dropout mask is not modelled."""
    return public_call(args[:6], {name: value for name, value in kwargs.items() if name != "dropout_mask"})


Path = Literal["general", "vector_one_pass", "vector_two_pass", "prefill", "prefill_mpp"]

HALF = (torch.float16, torch.bfloat16)


def takes_operator(call: AttentionCall, release: Release, macos: int, *, dropout_ignored: bool) -> bool:
    """Whether the public function passes the call to the MPS operator rather than to the composite path."""
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
        # The host code also tests for 4096 keys with shared heads, which 1024 keys already cover.
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
