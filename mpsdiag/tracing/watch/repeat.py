"""Run the same thing twice: random numbers, buffers and modes are put back; and what to say if it differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mpsdiag.findings import Advice
from mpsdiag.tracing.origin import Origin, Phase
from mpsdiag.tracing.watch.device_label import described, device_of


class Repeat:
    """The state of the generators and of a model's buffers, taken when made and by `take`; `again` puts it back.

    Args:
        model: Its buffers (such as running means) are kept; its weights are not.
    """

    def __init__(self, model: nn.Module) -> None:
        self._kind = device_of(model).type
        self._buffers = list(model.buffers())
        self.take()

    def take(self) -> None:
        """Take the state as it is now."""
        self._random = torch.get_rng_state()
        self._device_random = None if self._kind == "cpu" else _module(self._kind).get_rng_state()
        self._kept = [buffer.detach().clone() for buffer in self._buffers]

    def again(self) -> None:
        """Put random numbers and buffers back."""
        torch.set_rng_state(self._random)
        if self._device_random is not None:
            _module(self._kind).set_rng_state(self._device_random)
        with torch.no_grad():
            for buffer, kept in zip(self._buffers, self._kept, strict=True):
                if buffer.shape == kept.shape:
                    buffer.copy_(kept)


@contextmanager
def in_mode(model: nn.Module, *, training: bool, grad: bool) -> Iterator[None]:
    """Set training or evaluation mode and the grad mode, and put both back."""
    modes = {module: module.training for module in model.modules()}
    model.train(mode=training)
    try:
        with torch.set_grad_enabled(grad):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def did_not_repeat(
    model: nn.Module,
    what: str,
    *,
    operation: str,
    phase: Phase = "forward",
    evidence: Mapping[str, Any] | None = None,
) -> Origin:
    """The origin of what was not finite, and is when it is run again.

    Args:
        model: On its device.
        what: Was run, such as `step 3`.
        operation: Named as the place.
        phase: Of the step.
        evidence: What else is known.
    """
    return Origin(
        cause="unknown",
        layer=None,
        module="",
        operation=operation,
        phase=phase,
        summary=f"{what} was not finite, and is finite when it is run again: something here does not repeat (memory "
        "that nobody wrote, or a kernel that is not deterministic)",
        evidence={**(evidence or {}), "device": described(model)},
        remedy=Advice(
            text="Run it several times, and on the CPU; a device that gives other values each time has a defect.",
            commands=["mpsdiag check --level 3", "mpsdiag trace ... --device cpu"],
        ),
    )


def _module(kind: str) -> Any:
    return getattr(torch, kind)
