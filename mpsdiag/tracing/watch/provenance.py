"""Where a tensor comes from: the weights, the batch, or an operation that was seen to give non-finite values."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mpsdiag.tracing.watch.events import Source
from mpsdiag.tracing.watch.tensors import tensors_in


class Provenance:
    """Knows tensors by identity, and views of what was given or written into by their storage.

    Args:
        model: Its weights and buffers are known; shared weights go by their first name.
        batch: Its tensors are known, too.
    """

    def __init__(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        self._given = _given(model, batch)
        self._storages = {_storage(tensor): source for tensor, source in self._given.values()}
        self._storages.pop(0, None)
        # Weak: a tensor's number may be given to another once it is gone. Storages written in place are kept alive.
        self._made: dict[int, tuple[weakref.ref[Tensor], Source]] = {}
        self._written: dict[int, tuple[torch.UntypedStorage, Source]] = {}

    def of(self, tensor: Tensor) -> Source:
        """Where a tensor comes from, as far as is known."""
        given = self._given.get(id(tensor))
        if given is not None:
            return given[1]
        made = self._made.get(id(tensor))
        if made is not None and made[0]() is tensor:
            return made[1]
        place = _storage(tensor)
        if place and place in self._written:
            return self._written[place][1]
        return self._storages.get(place, Source("unseen"))

    def remember(self, result: Any, source: Source, *, in_place: bool) -> None:
        """Note who made the tensors of a result, or wrote into them.

        Args:
            result: Of an operation; nested tensors are found.
            source: The operation.
            in_place: Views of the same storage changed with them.
        """
        for _, tensor in tensors_in(result):
            self._made[id(tensor)] = weakref.ref(tensor), source
            if in_place:
                storage = tensor.untyped_storage()
                self._written[storage.data_ptr()] = storage, source


def _given(model: nn.Module, batch: Mapping[str, Any]) -> dict[int, tuple[Tensor, Source]]:
    found: dict[int, tuple[Tensor, Source]] = {}
    for name, weight in model.named_parameters():
        found[id(weight)] = weight, Source("weight", name)
    for name, buffer in model.named_buffers():
        found.setdefault(id(buffer), (buffer, Source("buffer", name)))
    for name, tensor in tensors_in(batch):
        found[id(tensor)] = tensor, Source("batch", name)
    return found


def _storage(tensor: Tensor) -> int:
    """Where a tensor's numbers lie; 0 for tensors without storage of their own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0
