"""Attention on an emulated machine: the public function, the operator behind it, and the composite path."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from mpsdiag.emulation.dispatch import choose_path, takes_operator
from mpsdiag.emulation.generations.composite import composite_attention
from mpsdiag.emulation.generations.rounding import expand_heads
from mpsdiag.emulation.paths import general, prefill_kernel, vector_kernel
from mpsdiag.emulation.refusals import BOTH_MASKS, refuse_call

if TYPE_CHECKING:
    from torch import Tensor

    from mpsdiag.emulation.call import AttentionCall
    from mpsdiag.emulation.machine import Machine


def attention(call: AttentionCall, machine: Machine) -> Tensor:
    """Compute a public call as the release of the machine would, with its refusals and aborts."""
    call = call.with_additive_mask()
    ignored = machine.has("SDPA008")
    if takes_operator(call, machine.release, machine.macos, dropout_ignored=ignored):
        return run_operator(call, machine, want_weights=False)[0]
    return _composite(call, machine)


def _composite(call: AttentionCall, machine: Machine) -> Tensor:
    if call.is_causal and call.mask is not None:
        raise RuntimeError(BOTH_MASKS)
    old = machine.release.general == "none"
    return composite_attention(
        *call.tensors,
        call.mask,
        call.is_causal,
        call.scale,
        call.enable_gqa,
        call.dropout_p,
        zero_dead_rows=not (old and machine.has("SDPA001")),
        wide_scores=not old or (call.query.dtype == torch.float16 and not machine.has("SDPA021")),
    )[0]


@torch.no_grad()
def run_operator(call: AttentionCall, machine: Machine, *, want_weights: bool) -> tuple[Tensor, Tensor | None]:
    """Compute a call that has reached the operator, or refuse it as the release does (`refusals.py`)."""
    release = machine.release
    refuse_call(call, machine)
    if release.empty_is_zeros and (call.value.numel() == 0 or call.query.size(-2) == 0):
        return call.query.new_zeros(*call.query.shape[:-1], call.value.size(-1)), None
    flat = _with_heads(_to_4d(call), machine)
    disabled = os.environ.get("PYTORCH_MPS_DISABLE_PREFILL_ATTENTION", "0") != "0"
    path = choose_path(flat, release, machine.macos, prefill_disabled=disabled)
    weights: Tensor | None = None
    if path == "general":
        output, weights = general(flat, machine, want_weights=want_weights)
    elif path in {"prefill", "prefill_mpp"}:
        output = prefill_kernel(flat, machine, mpp=path == "prefill_mpp")
    else:
        output = vector_kernel(flat, machine, two_pass=path == "vector_two_pass")
    return _in_shape_of(call.query, output), None if weights is None else _in_shape_of(call.query, weights)


def _to_4d(call: AttentionCall) -> AttentionCall:
    """Bring query, key and value to four dimensions: leading ones become one, missing ones are added."""
    if call.query.dim() == call.key.dim() == call.value.dim() == 4:
        return call
    query, key, value = (x.flatten(0, x.dim() - 4) if x.dim() > 4 else x[(None,) * (4 - x.dim())] for x in call.tensors)
    mask = call.mask
    if mask is not None and call.query.dim() > 4:
        mask = mask.expand(*call.query.shape[:-1], mask.size(-1)).flatten(0, call.query.dim() - 4)
    return replace(call, query=query, key=key, value=value, mask=mask)


def _with_heads(call: AttentionCall, machine: Machine) -> AttentionCall:
    """Repeat key and value heads where the release does so before it chooses a path."""
    if call.query.size(1) == call.key.size(1) == call.value.size(1):
        return call
    if machine.release.shares_heads:
        if call.query.size(1) % call.key.size(1):
            raise RuntimeError(
                f"For GQA, the query tensor's head dimension ({call.query.size(1)}) must be divisible by the key "
                f"tensor's head dimension ({call.key.size(1)})."
            )
        return call
    key, value = expand_heads(call.key, call.value, call.query, call.enable_gqa)
    return replace(call, key=key, value=value, enable_gqa=False)


def _in_shape_of(query: Tensor, result: Tensor) -> Tensor:
    """Give a 4D result the leading dimensions of the query; RuntimeError where broadcasting made it larger."""
    return result if query.dim() == 4 else result.view(*query.shape[:-1], result.size(-1))
