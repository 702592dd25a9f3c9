"""`scaled_dot_product_attention` on an emulated machine: the public function, and the composite path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mpsdiag.emulation.dispatch import takes_operator
from mpsdiag.emulation.generations.composite import composite_attention
from mpsdiag.emulation.operator import run_operator
from mpsdiag.emulation.refusals import BOTH_MASKS

if TYPE_CHECKING:
    from torch import Tensor

    from mpsdiag.emulation.call import Call
    from mpsdiag.emulation.machine import Machine


def attention(call: Call, machine: Machine) -> Tensor:
    """Compute a public call as the machine's release would.

    Args:
        call: The arguments, with CPU tensors.
        machine: Release, macOS, defects.

    Returns:
        `(..., Hq, L, Dv)` in the dtype of the query; differentiable on the composite path only.

    Raises:
        RuntimeError: A mask together with `is_causal`.
        NotImplementedError: Dropout without gradients on 2.13 and later.
        EmulatedAbort: Where the real thing ends the process.
    """
    call = call.with_additive_mask()
    ignored = machine.has("SDPA008")
    if takes_operator(call, machine.release, machine.macos, dropout_ignored=ignored):
        return run_operator(call, machine, want_weights=False)[0]
    return _composite(call, machine)


def _composite(call: Call, machine: Machine) -> Tensor:
    if call.is_causal and call.mask is not None:
        raise RuntimeError(BOTH_MASKS)
    old = machine.release.general == "none"
    return composite_attention(
        call.query,
        call.key,
        call.value,
        call.mask,
        call.is_causal,
        call.scale,
        call.enable_gqa,
        call.dropout_p,
        zero_dead_rows=not (old and machine.has("SDPA001")),
        wide_scores=not old or (call.query.dtype == torch.float16 and not machine.has("SDPA021")),
    )[0]
