"""The input of a rule: one place where non-finite values begin, with everything known about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpsdiag.tracing.origin import REMEDIES, Cause, Origin
from mpsdiag.tracing.watch.calls import TorchCall
from mpsdiag.tracing.watch.model_state import device_label
from mpsdiag.tracing.watch.origin_search import PassEvent, Terminal
from mpsdiag.tracing.watch.tensors import bad_rows, facts, tensors_in


@dataclass(frozen=True)
class Candidate:
    """Where non-finite values begin, and in which run; `grad`: gradients were required."""

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
        """The call with its tensors, if they were kept."""
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
        """Where it ran, in words; an emulation is named as such."""
        return device_label(self.model)

    def origin(self, cause: Cause, summary: str, remedy: str, **evidence: Any) -> Origin:
        """What a rule makes of it. `summary` is one sentence without a full stop, `remedy` one of `REMEDIES`."""
        event, output, inputs = self.event, self.output, self.inputs
        evidence["device"] = self.device
        if output is not None:
            evidence["output"] = facts(output, event.operation) | {"non_finite": bad_rows(output)}
        if inputs:
            evidence["inputs"] = [facts(tensor, name) for name, tensor in inputs]
        return Origin(
            cause=cause,
            layer=event.layer,
            module=event.module,
            operation=event.operation,
            phase="data" if cause in ("bad_inputs", "no_labels") else "forward",
            summary=summary,
            evidence=evidence,
            remedy=REMEDIES[remedy],
        )
