"""The cheap pass: is anything non-finite at all? Sums that stay on the device, read once a step.

A sum is finite exactly when all its terms are, but for an overflow of the sum itself; then the detailed pass finds
nothing, and nothing is reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpsdiag.inputs.modules import first_tensor, is_compiled, numbered_layers
from mpsdiag.tracing.watch.fast_path import FUSED
from mpsdiag.tracing.watch.tensors import fresh, judged_in

_HALF = (torch.float16, torch.bfloat16)


def forward_hooked(model: nn.Module, batch: Mapping[str, Any], layers: Iterable[nn.Module], hook: Any) -> Any:
    """Run the model on a copy of the batch, with a forward hook on these layers while it runs."""
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        return model(**fresh(batch))
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Reading:
    """What a step showed: something may be non-finite; the loss or a logit surely is; the scalars read along."""

    suspicious: bool
    certain: bool
    extra: list[float]


class Flags:
    """Judges the outputs of the layers and of the model in a `forward`."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        # A hook on those would change the path that runs.
        layers = [] if is_compiled(model) else list(numbered_layers(model))
        self._layers = [layer for layer in layers if not isinstance(layer, FUSED)]
        self._sums: list[Tensor] = []
        self._surely: list[Tensor] = []

    def forward(self, batch: Mapping[str, Any]) -> Any:
        """Run the model on a copy of the batch."""
        output = forward_hooked(self._model, batch, self._layers, self._leave)
        self._note_output(output)
        return output

    def note(self, tensor: Tensor) -> None:
        """Add one more tensor to those of this step, such as a gradient norm."""
        if _is_judged(tensor):
            dtype = torch.float32 if tensor.dtype in _HALF else None
            self._sums.append(tensor.detach().sum(dtype=dtype).reshape(()))

    def read(self, *extra: Tensor) -> Reading:
        """End the step and wait for the device, once."""
        sums, surely, scalars = self._sums, self._surely, [tensor.detach().reshape(()) for tensor in extra]
        self._sums, self._surely = [], []
        everything = [*sums, *surely, *scalars]
        if not everything:
            return Reading(suspicious=False, certain=False, extra=[])
        place = everything[-1].device
        values: list[float] = torch.stack([value.float().to(place) for value in everything]).tolist()
        largest, read = values[len(sums) : len(sums) + len(surely)], values[len(sums) + len(surely) :]
        certain = any(math.isnan(value) or value == math.inf for value in largest)
        return Reading(
            suspicious=not all(map(math.isfinite, values)),
            certain=certain or not all(map(math.isfinite, read)),
            extra=read,
        )

    def _leave(self, _module: nn.Module, _: Any, output: Any) -> None:
        hidden = first_tensor(output)
        if hidden is not None:
            self.note(hidden)

    def _note_output(self, output: Any) -> None:
        # The greatest value passes NaN on, and leaves out the minus infinities that rule tokens out.
        judged = [tensor.detach() for _, tensor in judged_in(output) if _is_judged(tensor)]
        self._surely += [tensor.amax().reshape(()) for tensor in judged]


def _is_judged(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not tensor.is_nested and tensor.numel() > 0
