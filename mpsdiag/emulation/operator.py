"""Attention on an emulated machine: the public function, the operator behind it, and the paths to the kernels.

Each path passes a call to its kernel, with the defects of that path.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from mpsdiag.emulation import faults
from mpsdiag.emulation.call import HALF, AttentionCall, choose_path, takes_operator
from mpsdiag.emulation.generations.graph import TINY_SHIFT, composite_attention, graph_attention
from mpsdiag.emulation.generations.prefill import LOG2E, prefill
from mpsdiag.emulation.generations.rounding import expand_heads
from mpsdiag.emulation.generations.vector import vector_one_pass, vector_two_pass
from mpsdiag.emulation.selection import BOTH_MASKS, Machine, refuse_call, refuse_general


def attention(call: AttentionCall, machine: Machine) -> Tensor:
    """Compute a public call as the machine's release does, with its refusals and aborts."""
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
        call,
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
    """Repeat key and value heads if the release does so before it chooses a path."""
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
    """Give a 4D result the leading dimensions of the query; RuntimeError if broadcasting made it larger."""
    return result if query.dim() == 4 else result.view(*query.shape[:-1], result.size(-1))


def general(call: AttentionCall, machine: Machine, *, want_weights: bool) -> tuple[Tensor, Tensor | None]:
    """Run the graph (G1, G2, G3), or refuse the call as it does."""
    refuse_general(call, machine)
    if call.mask is not None and machine.release.expands_mask:
        call = replace(call, mask=faults.expanded_mask(call))
    if machine.has("SDPA015") or machine.has("SDPA016"):
        call = faults.as_the_cached_graph_runs_it(call, machine)
    shared = call.key.size(1) != call.query.size(1) and (call.enable_gqa or machine.release.shares_heads)
    newest = machine.release.general == "G3"
    output, weights = graph_attention(
        replace(call, enable_gqa=shared),
        zero_dead_rows=newest or not machine.has("SDPA001"),
        wide_scores=newest or (call.query.dtype == torch.float16 and not machine.has("SDPA021")),
        causal_group=4 if newest and call.query.dtype in HALF and machine.has("SDPA014") else 1,
        shift=TINY_SHIFT if not newest and machine.release.tiny_shift and machine.macos >= 15 else 0.0,
        want_weights=want_weights,
    )
    if machine.has("SDPA018"):
        output = faults.corrupt_far_heads(output, call.key.size(2), machine.garbage)
    if machine.has("SDPA009"):
        output = faults.laid_out_for_another_width(output, call.query.size(3), machine.garbage)
    return output, weights


def vector_kernel(call: AttentionCall, machine: Machine, *, two_pass: bool) -> Tensor:
    """Run the vector kernel for few queries, in one pass (G4) or two (G5)."""
    call = faults.as_vector_kernel_reads(call, machine, two_pass=two_pass)
    kernel: Callable[..., Tensor] = vector_one_pass
    if two_pass:
        narrow = machine.has("SDPA004") and call.query.dtype in HALF
        kernel = partial(vector_two_pass, maxima_behind=next(machine.gaps) if narrow else None)
    return kernel(call, guarded=not machine.has("SDPA029"), propagates_nan=not machine.has("SDPA020"))


def prefill_kernel(call: AttentionCall, machine: Machine, *, mpp: bool) -> Tensor:
    """Run the prefill kernel for many queries (G6), or the one on Metal Performance Primitives (G7)."""
    call = faults.as_prefill_kernel_reads(call, machine)
    if call.mask is not None and call.mask.dtype != torch.bool and machine.has("SDPA007"):
        call = replace(call, mask=call.mask.float() / LOG2E)  # the kernel multiplies it by that again
    scales_query = not mpp and machine.release.prefill_scales == "query"
    return prefill(call, mpp=mpp, scales_query=scales_query, propagates_nan=not machine.has("SDPA020"))
