"""What a call should have given: computed again in float64 on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from mpsdiag.diagnosis.tracing.causes.replay import replay
from mpsdiag.diagnosis.tracing.events import Call
from mpsdiag.diagnosis.tracing.operations import SDPA, arguments
from mpsdiag.sdpa import reference_attention


def in_float64(operation: str, call: Call) -> Tensor | None:
    """The result in float64; attention from its definition, not from another kernel of torch.

    Args:
        operation: What was called.
        call: With its inputs.
    """
    if operation != SDPA:
        return replay(call, torch.float64)
    named = arguments(SDPA, call.args, call.kwargs)
    return reference_attention(
        named["query"],
        named["key"],
        named["value"],
        named.get("attn_mask"),
        bool(named.get("is_causal", False)),
        named.get("scale"),
        bool(named.get("enable_gqa", False)),
    )
