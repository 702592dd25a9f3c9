"""The paths inside the operator: each hands a call to its kernel, with the defects that belong to the path."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from mpsdiag.emulation.dispatch import HALF
from mpsdiag.emulation.faults import as_the_cached_graph_runs_it, corrupt_far_heads, laid_out_for_another_width
from mpsdiag.emulation.generations.graph import TINY_SHIFT, graph_attention
from mpsdiag.emulation.generations.graph_f32 import graph_attention_f32
from mpsdiag.emulation.generations.prefill import LOG2E, prefill, prefill_mpp
from mpsdiag.emulation.generations.rounding import scale_or_default
from mpsdiag.emulation.generations.vector_one_pass import vector_one_pass
from mpsdiag.emulation.generations.vector_two_pass import vector_two_pass
from mpsdiag.emulation.host import as_prefill_kernel_reads, as_vector_kernel_reads, expanded_mask
from mpsdiag.emulation.refusals import refuse_general

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from mpsdiag.emulation.call import AttentionCall
    from mpsdiag.emulation.machine import Machine


def general(call: AttentionCall, machine: Machine, *, want_weights: bool) -> tuple[Tensor, Tensor | None]:
    """Run the graph (G1, G2, G3), or refuse the call as it does."""
    refuse_general(call, machine)
    if call.mask is not None and machine.release.expands_mask:
        call = replace(call, mask=expanded_mask(call))
    if machine.has("SDPA015") or machine.has("SDPA016"):
        call = as_the_cached_graph_runs_it(call, machine)
    shared = call.key.size(1) != call.query.size(1) and (call.enable_gqa or machine.release.shares_heads)
    arguments = (call.query, call.key, call.value, call.mask, call.is_causal, call.scale, shared)
    if machine.release.general == "G3":
        leak = machine.has("SDPA014") and call.query.dtype in HALF
        output, weights = graph_attention_f32(*arguments, causal_group=4 if leak else 1, want_weights=want_weights)
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


def vector_kernel(call: AttentionCall, machine: Machine, *, two_pass: bool) -> Tensor:
    """Run the vector kernel for few queries, in one pass (G4) or two (G5)."""
    call = as_vector_kernel_reads(call, machine, two_pass=two_pass)
    kernel: Callable[..., Tensor] = vector_one_pass
    if two_pass:
        narrow = machine.has("SDPA004") and call.query.dtype in HALF
        kernel = partial(vector_two_pass, maxima_behind=next(machine.gaps) if narrow else None)
    return kernel(
        *call.tensors,
        call.mask,
        call.is_causal,
        scale_or_default(call.scale, call.query),
        guarded=not machine.has("SDPA029"),
        propagates_nan=not machine.has("SDPA020"),
    )


def prefill_kernel(call: AttentionCall, machine: Machine, *, mpp: bool) -> Tensor:
    """Run the prefill kernel for many queries (G6), or the one on Metal Performance Primitives (G7)."""
    call = as_prefill_kernel_reads(call, machine)
    mask = call.mask
    if mask is not None and mask.dtype != torch.bool and machine.has("SDPA007"):
        mask = mask.float() / LOG2E  # the kernel multiplies it by that again
    arguments = (*call.tensors, mask, call.is_causal, scale_or_default(call.scale, call.query))
    keeps_nan = not machine.has("SDPA020")
    if mpp:
        return prefill_mpp(*arguments, propagates_nan=keeps_nan)
    scales_query = machine.release.prefill_scales == "query"
    return prefill(*arguments, scales_query=scales_query, propagates_nan=keeps_nan)
