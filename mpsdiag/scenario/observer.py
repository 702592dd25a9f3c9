"""Watch a forward pass: dead rows that reach F.sdpa, and the first operation that gives a non-finite value.

SDPA is a function, not a module, so module hooks alone stop one step late. The observer is a TorchFunctionMode that
sees the call itself, and module hooks tell it in which layer it stands. Flags stay on the device until they are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mpsdiag.inputs.modules import ModulePath, first_tensor
from mpsdiag.sdpa import dead_rows

SDPA = "scaled_dot_product_attention"


@dataclass(frozen=True)
class Event:
    """One operation that was watched; `bad_rows` is a device scalar: rows with a non-finite value."""

    module: str
    layer: int | None
    operation: str
    bad_rows: Tensor


@dataclass
class Sighting:
    """What one forward showed, in the order it happened."""

    events: list[Event] = field(default_factory=list)
    layer_rows: list[Tensor] = field(default_factory=list)
    """Per decoder layer, (sequences, positions) bool: the hidden state there is non-finite."""
    dead: list[Tensor] = field(default_factory=list)
    """Per SDPA call, a device scalar: (sequence, query) rows of its mask that may attend to nothing."""
    noncontiguous: list[bool] = field(default_factory=list)
    """Per SDPA call: query, key or value is not contiguous."""
    masked: list[bool] = field(default_factory=list)


class Observer(TorchFunctionMode):
    """Sees every `F.scaled_dot_product_attention` under it; enter it inside an emulation, not around it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._path = ModulePath(model)
        self.sighting = Sighting()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # A call outside every watched module comes from another model, such as a trainer's CPU copy.
        if self._path and getattr(func, "__name__", "") == SDPA:
            self._saw_attention(result, *args, **kwargs)
        return result

    def _saw_attention(
        self,
        result: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> None:
        self.sighting.masked.append(attn_mask is not None)
        self.sighting.noncontiguous.append(not all(x.is_contiguous() for x in (query, key, value)))
        if attn_mask is not None:
            rows = dead_rows(attn_mask)
            # A mask may be broadcast over sequences and heads: count (sequence, query) pairs, each once.
            rows = rows.any(1) if rows.dim() == 3 else rows
            self.sighting.dead.append(rows.expand(query.shape[0], query.shape[-2]).sum())
        self._record(result, SDPA)

    def _record(self, output: Tensor, operation: str) -> None:
        self.sighting.events.append(
            Event(
                module=self._path.module,
                layer=self._path.layer,
                operation=operation,
                bad_rows=(~torch.isfinite(output)).any(-1).sum(),
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
