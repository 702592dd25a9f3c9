"""The paths inside the operator: each hands a call to its kernel, with the defects that belong to the path."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from mpsdiag.emulation.faults.garbage import (
    corrupt_far_heads,
    laid_out_for_another_width,
    overwritten_partials,
)
from mpsdiag.emulation.faults.graph_cache import as_the_cached_graph_runs_it
from mpsdiag.emulation.faults.strides import (
    mask_with_wrong_strides,
    query_without_batch_stride,
    query_without_strides,
)
from mpsdiag.emulation.g1_graph import TINY_SHIFT, graph_attention
from mpsdiag.emulation.g3_graph_f32 import graph_attention_f32
from mpsdiag.emulation.g4_vector_one_pass import vector_one_pass
from mpsdiag.emulation.g5_vector_two_pass import vector_two_pass
from mpsdiag.emulation.g6_prefill import LOG2E, prefill
from mpsdiag.emulation.g7_mpp import prefill_mpp
from mpsdiag.emulation.refusals import refuse_general
from mpsdiag.emulation.rounding import scale_or_default

if TYPE_CHECKING:
    from torch import Tensor

    from mpsdiag.emulation.call import Call
    from mpsdiag.emulation.machine import Machine

_HALF = (torch.float16, torch.bfloat16)


def general(call: Call, machine: Machine, *, want_weights: bool) -> tuple[Tensor, Tensor | None]:
    """Run the graph (G1, G2, G3).

    Args:
        call: 4D.
        machine: Release, macOS, defects.
        want_weights: Also return the attention weights.

    Returns:
        Output `(B, H, L, Dv)` and weights or None.

    Raises:
        RuntimeError: A mask together with `is_causal`.
        EmulatedAbort: Where the real thing ends the process.
    """
    refuse_general(call, machine)
    if call.mask is not None and machine.release.expands_mask:
        call = replace(call, mask=_expanded(call))
    if machine.has("SDPA015") or machine.has("SDPA016"):
        call = as_the_cached_graph_runs_it(call, machine)
    shared = call.key.size(1) != call.query.size(1) and (call.enable_gqa or machine.release.shares_heads)
    arguments = (call.query, call.key, call.value, call.mask, call.is_causal, call.scale, shared)
    if machine.release.general == "G3":
        leak = machine.has("SDPA014") and call.query.dtype in _HALF
        output, weights = graph_attention_f32(
            *arguments, causal_group=4 if leak else 1, want_weights=want_weights
        )
    else:
        output, weights = graph_attention(
            *arguments,
            zero_dead_rows=not machine.has("SDPA001"),
            wide_scores=call.query.dtype == torch.float16 and not machine.has("SDPA021"),
            shift=TINY_SHIFT if machine.release.tiny_shift and machine.macos >= 15 else 0.0,
            want_weights=want_weights,
        )
    if machine.has("SDPA018"):
        output = corrupt_far_heads(output, call.key.size(2), machine.garbage)
    if machine.has("SDPA009"):
        output = laid_out_for_another_width(output, call.query.size(3), machine.garbage)
    return output, weights


def vector_kernel(call: Call, machine: Machine, *, two_pass: bool) -> Tensor:
    """Run the vector kernel for few queries, in one pass (G4) or two (G5).

    Args:
        call: 4D.
        machine: Release, macOS, defects.
        two_pass: Which of the two.

    Returns:
        `(B, H, L, Dv)`.
    """
    query, mask = call.query, _expanded(call)
    if machine.has("SDPA002"):
        query = query_without_strides(query)
    elif machine.has("SDPA003"):
        query = query_without_batch_stride(query)
    if mask is not None:
        permuted, lost = machine.has("SDPA005") and not two_pass, machine.has("SDPA006")
        if mask.dtype == torch.bool and (permuted or lost):
            mask = mask_with_wrong_strides(mask, permuted=permuted, batch_lost=lost, garbage=machine.garbage)
    kernel = vector_two_pass if two_pass else vector_one_pass
    output = kernel(
        query,
        call.key,
        call.value,
        mask,
        call.is_causal,
        scale_or_default(call.scale, query),
        guarded=not machine.has("SDPA029"),
        propagates_nan=not machine.has("SDPA020"),
    )
    if two_pass and machine.has("SDPA004") and query.dtype in _HALF:
        output = overwritten_partials(output, machine.garbage)
    return output


def prefill_kernel(call: Call, machine: Machine, *, mpp: bool) -> Tensor:
    """Run the prefill kernel for many queries (G6), or the one on Metal Performance Primitives (G7).

    Args:
        call: 4D.
        machine: Release, macOS, defects.
        mpp: Which of the two.

    Returns:
        `(B, H, L, Dv)`.
    """
    mask = _expanded(call)
    if mask is not None and mask.dtype != torch.bool and machine.has("SDPA007"):
        mask = mask.float() / LOG2E  # the kernel multiplies it by that again
    kernel = prefill_mpp if mpp else prefill
    return kernel(
        call.query, call.key, call.value, mask, call.is_causal, scale_or_default(call.scale, call.query)
    )


def _expanded(call: Call) -> Tensor | None:
    if call.mask is None:
        return None
    return call.mask.expand(*call.query.shape[:3], call.key.size(2))
