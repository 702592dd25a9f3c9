"""The operator `aten::_scaled_dot_product_attention_math_for_mps` on an emulated machine."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from mpsdiag.emulation.dispatch import choose_path
from mpsdiag.emulation.g1_graph import TINY_SHIFT, graph_attention
from mpsdiag.emulation.g3_graph_f32 import graph_attention_f32

if TYPE_CHECKING:
    from torch import Tensor

    from mpsdiag.emulation.call import Call
    from mpsdiag.emulation.machine import Machine


@torch.no_grad()
def run_operator(call: Call, machine: Machine, *, want_weights: bool) -> tuple[Tensor, Tensor | None]:
    """Compute a call that has reached the operator.

    Args:
        call: The arguments; a bool mask stays bool here.
        machine: Release, macOS, defects.
        want_weights: Also return the attention weights where the path has them.

    Returns:
        Output `(..., Hq, L, Dv)` and attention weights or None; neither is differentiable.

    Raises:
        RuntimeError: A mask together with `is_causal`.
        NotImplementedError: Dropout, or a dtype that is not floating, on 2.13 and later.
        EmulatedAbort: Where the real thing ends the process.
    """
    release = machine.release
    if release.dropout == "refused" and call.dropout_p > 0.0 and not machine.has("SDPA008"):
        raise NotImplementedError(
            "scaled_dot_product_attention on MPS does not support dropout without gradients"
        )
    if call.is_causal and call.mask is not None:
        raise RuntimeError("scaled_dot_product_attention: attn_mask must not be set when is_causal=True")
    if release.empty == "zeros" and (call.value.numel() == 0 or call.query.size(-2) == 0):
        return call.query.new_zeros(*call.query.shape[:-1], call.value.size(-1)), None
    flat = replace(call, query=_to_4d(call.query), key=_to_4d(call.key), value=_to_4d(call.value))
    flat = replace(flat, mask=_mask_to_4d(call.mask, call.query))
    disabled = os.environ.get("PYTORCH_MPS_DISABLE_PREFILL_ATTENTION") == "1"
    path = choose_path(flat, release, machine.macos, prefill_disabled=disabled)
    if path == "general":
        output, weights = _general(flat, machine, want_weights=want_weights)
    else:
        raise NotImplementedError(path)
    lead = call.query.shape[:-1]
    return (
        output.view(*lead, output.size(-1)),
        None if weights is None else weights.view(*lead, weights.size(-1)),
    )


def _general(call: Call, machine: Machine, *, want_weights: bool) -> tuple[Tensor, Tensor | None]:
    arguments = (call.query, call.key, call.value, call.mask, call.is_causal, call.scale, call.enable_gqa)
    if machine.release.general == "G3":
        return graph_attention_f32(*arguments, want_weights=want_weights)
    shift = TINY_SHIFT if machine.release.tiny_shift and machine.macos >= 15 else 0.0
    zero = machine.release.general == "G2" or not machine.has("SDPA001")
    return graph_attention(*arguments, zero_dead_rows=zero, shift=shift, want_weights=want_weights)


def _to_4d(tensor: Tensor) -> Tensor:
    """Leading dimensions of 5D and more become one, missing ones are added."""
    if tensor.dim() > 4:
        return tensor.flatten(0, tensor.dim() - 4)
    return tensor[(None,) * (4 - tensor.dim())]


def _mask_to_4d(mask: Tensor | None, query: Tensor) -> Tensor | None:
    if mask is None or query.dim() <= 4:
        return mask
    return mask.expand(*query.shape[:-2], query.size(-2), mask.size(-1)).flatten(0, query.dim() - 4)
