"""The cheap pass: is anything non-finite at all? Sums that stay on the device, read once a step.

A sum is finite exactly when all its terms are, but for an overflow of the sum itself; then the detailed pass finds
nothing, and nothing is reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpsdiag.inputs.modules import decoder_layers, first_tensor
from mpsdiag.tracing.watch.tensors import judged_in

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Reading:
    """What a step showed: something may be non-finite; the loss or a logit surely is; the scalars read along."""

    suspicious: bool
    certain: bool
    extra: list[float]


class Flags:
    """Watches the outputs of the decoder layers and of the model while `watching`."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._layers = set(decoder_layers(model))
        self._sums: list[Tensor] = []
        self._surely: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch until the block ends; the hooks are removed whatever happens."""
        handles = [module.register_forward_hook(self._leave) for module in (*self._layers, self._model)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def note(self, tensor: Tensor) -> None:
        """Add one more tensor to those of this step, such as a gradient norm."""
        if tensor.is_floating_point() and tensor.numel():
            with torch.no_grad():
                self._sums.append(
                    tensor.detach().sum(dtype=torch.float32 if tensor.dtype in _HALF else None).reshape(())
                )

    def read(self, *extra: Tensor) -> Reading:
        """End the step and wait for the device, once."""
        sums, surely, scalars = self._sums, self._surely, [tensor.detach().reshape(()) for tensor in extra]
        self._sums, self._surely = [], []
        everything = [*sums, *surely, *scalars]
        if not everything:
            return Reading(suspicious=False, certain=False, extra=[])
        place = everything[-1].device
        values: list[float] = torch.stack([value.float().to(place) for value in everything]).tolist()
        certain = any(
            math.isnan(value) or value == math.inf for value in values[len(sums) : len(sums) + len(surely)]
        )
        return Reading(
            suspicious=not all(map(math.isfinite, values)),
            certain=certain,
            extra=values[len(sums) + len(surely) :],
        )

    def _leave(self, module: nn.Module, _: Any, output: Any) -> None:
        if module is self._model:
            self._note_output(output)
            return
        hidden = first_tensor(output)
        if hidden is not None:
            self.note(hidden)

    def _note_output(self, output: Any) -> None:
        for _, tensor in judged_in(output):
            if tensor.is_floating_point() and tensor.numel():
                # The greatest value passes NaN on, and leaves out the minus infinities that rule tokens out.
                with torch.no_grad():
                    self._surely.append(tensor.detach().amax().reshape(()))
