"""Watch a forward: fully masked rows that reach attention, and the first operation that gives a non-finite value.

SDPA is a function, not a module, so module hooks alone stop one step late: they only say in which layer a call stands.
Flags stay on the device until they are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mpsdiag.inputs.modules import ModulePath, first_tensor
from mpsdiag.sdpa.watch import SDPA, SdpaCall, SdpaWatch, per_query


@dataclass(frozen=True)
class WatchedOperation:
    """One operation that was watched; `bad_rows` is a device scalar: (sequence, query) rows that are not finite."""

    module: str
    layer: int | None
    operation: str
    bad_rows: Tensor


@dataclass
class Sighting:
    """What one forward showed, in the order it happened."""

    events: list[WatchedOperation] = field(default_factory=list)
    layer_rows: list[Tensor] = field(default_factory=list)
    """Per decoder layer, (sequences, positions) bool: the hidden state there is non-finite."""
    dead: list[Tensor] = field(default_factory=list)
    """Per SDPA call with a mask, a device scalar: its fully masked rows, as `SdpaCall` counts them."""
    noncontiguous: list[bool] = field(default_factory=list)
    """Per SDPA call: query, key or value is not contiguous."""
    masked: list[bool] = field(default_factory=list)
    lowest: list[Tensor] = field(default_factory=list)
    """Per SDPA call with a floating mask, a device scalar: its lowest value, -inf where keys are ruled out for good."""


class Observer(SdpaWatch):
    """Watches the forwards of one model; see `SdpaWatch` for where to enter it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._path = ModulePath(model)
        self.sighting = Sighting()

    def saw_sdpa(self, call: SdpaCall, result: Tensor) -> None:
        """Write down one call of attention and what it gave."""
        if not self._path:  # It comes from another model, such as a trainer's CPU copy.
            return
        rows = call.masked_rows()
        self.sighting.masked.append(rows is not None)
        self.sighting.noncontiguous.append(not call.contiguous)
        if rows is not None:
            self.sighting.dead.append(rows.sum())
        if call.attn_mask is not None and call.attn_mask.is_floating_point():
            self.sighting.lowest.append(call.attn_mask.min())
        self._record(result, SDPA)

    def _record(self, output: Tensor, operation: str) -> None:
        self.sighting.events.append(
            WatchedOperation(
                module=self._path.module,
                layer=self._path.layer,
                operation=operation,
                bad_rows=per_query((~torch.isfinite(output)).any(-1)).sum(),
            )
        )

    def _leave_module(self, module: nn.Module, output: Any) -> None:
        hidden = first_tensor(output)
        if hidden is not None and hidden.is_floating_point() and hidden.dim() >= 2:
            self._record(hidden, type(module).__name__)
            if self._path.layer_of(module) is not None:
                self.sighting.layer_rows.append((~torch.isfinite(hidden)).any(-1))

    @contextmanager
    def watching(self) -> Iterator[Observer]:
        """Watch until the block ends; the hooks are removed whatever happens."""
        with self._path.followed(self._leave_module), self:
            yield self

    def collect(self) -> Sighting:
        """Hand over what was seen since the last call, and start anew."""
        seen, self.sighting = self.sighting, Sighting()
        return seen
