"""What a rule is given: one beginning of non-finite values with all that is known about it; and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mpsdiag.findings import Advice
from mpsdiag.tracing.origin import Cause
from mpsdiag.tracing.watch.model_state import device_label
from mpsdiag.tracing.watch.operations import TorchCall
from mpsdiag.tracing.watch.origin_search import PassEvent, Terminal
from mpsdiag.tracing.watch.tensors import tensors_in


@dataclass(frozen=True)
class Candidate:
    """One beginning of non-finite values: where, and the run it happened in; `grad`: gradients were wanted."""

    terminal: Terminal
    batch: Mapping[str, Any]
    model: nn.Module
    grad: bool

    @property
    def event(self) -> PassEvent:
        """The operation."""
        return self.terminal.event

    @property
    def call(self) -> TorchCall | None:
        """The call with its tensors, where they were kept."""
        return self.event.call if self.terminal.kind in ("nan", "inf", "error") else None

    @property
    def named(self) -> dict[str, Any]:
        """The arguments of the call by name."""
        call = self.event.call
        return {} if call is None else call.named

    @property
    def inputs(self) -> list[tuple[str, Tensor]]:
        """The tensors among the arguments."""
        return list(tensors_in(self.named))

    @property
    def output(self) -> Tensor | None:
        """The first non-finite tensor of the call's result."""
        call = self.event.call
        if call is None:
            return None
        floating = [tensor for _, tensor in tensors_in(call.result) if tensor.is_floating_point()]
        return next((tensor for tensor in floating if not bool(torch.isfinite(tensor).all())), None)

    @property
    def device(self) -> str:
        """Where it ran, in words: an emulation is called one."""
        return device_label(self.model)


@dataclass(frozen=True)
class Explanation:
    """What a rule makes of a first. `summary` is one sentence without a full stop."""

    cause: Cause
    summary: str
    remedy: Advice
    evidence: dict[str, Any] = field(default_factory=dict)
