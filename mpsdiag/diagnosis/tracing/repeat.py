"""Run the same thing twice: random numbers, buffers, modes and gradients are put back to where they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mpsdiag import device as devices


class Repeat:
    """The state of the generators and of a model's buffers, taken when made and by `take`; `again` puts it back.

    Args:
        model: Its buffers (such as running means) are kept; its weights are not.
    """

    def __init__(self, model: nn.Module) -> None:
        weight = next(model.parameters(), None)
        self._kind = "cpu" if weight is None else devices.kind_of(weight.device)
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


def _module(kind: str) -> Any:
    return getattr(torch, kind)
