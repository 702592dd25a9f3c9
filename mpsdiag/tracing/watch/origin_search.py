"""From non-finite outputs back to where they began: the records of a detailed pass, and the search through them.

Not every infinity is a fault: masks are full of minus infinities, and an overflow inside a tanh does no harm. So the
search goes backwards from the outputs, through non-finite tensors only, and ends where finite inputs gave the first.
"""

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mpsdiag.inputs.nonfinite import is_statistic
from mpsdiag.tracing.watch.calls import TorchCall
from mpsdiag.tracing.watch.tensors import Impurity, tensors_in

_MAKERS = ("tensor", "as_tensor", "from_numpy", "scalar_tensor", "asarray")

SourceKind = Literal["event", "weight", "buffer", "batch", "unseen"]


@dataclass(frozen=True)
class Source:
    """Where a tensor came from: another event, a weight or buffer by name, the batch by key, or unknown.

    `statistic`: a buffer that must not be infinite, such as the running mean of a normalization.
    """

    kind: SourceKind
    name: str = ""
    event: int = -1
    statistic: bool = False


@dataclass(frozen=True)
class Operand:
    """A non-finite input of an operation."""

    name: str
    impurity: Impurity
    source: Source


@dataclass(frozen=True)
class PassEvent:
    """One operation that raised or gave a non-finite output; `index` counts all operations of the pass.

    `operands` are its inputs that were already non-finite; `call` is kept if finite inputs gave the value.
    """

    index: int
    operation: str
    module: str
    layer: int | None
    impurity: Impurity
    operands: tuple[Operand, ...] = ()
    infinite_scalar: bool = False
    call: TorchCall | None = None
    error: BaseException | None = None


@dataclass
class Pass:
    """One detailed pass over a batch: the operations with non-finite outputs, in order, and how many ran in total.

    `watched`: sources of non-finite outputs of layers and of the model; `outputs`: those of the model, which must not
    be infinite either. `spread`: in how many sequences and positions the output of a layer is non-finite.
    """

    events: list[PassEvent] = field(default_factory=list)
    watched: list[Source] = field(default_factory=list)
    outputs: list[Source] = field(default_factory=list)
    spread: list[dict[str, Any]] = field(default_factory=list)
    operations: int = 0


TerminalKind = Literal["nan", "inf", "weight", "batch", "unseen", "error"]


@dataclass(frozen=True)
class Terminal:
    """The beginning of a chain of non-finite values: made by `event`, or brought into it by `operand`."""

    kind: TerminalKind
    event: PassEvent
    operand: Operand | None = None


class Provenance:
    """Identifies tensors by identity, and views of inputs and of written tensors by their storage."""

    def __init__(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        self._given = _given(model, batch)
        self._storages = {_storage(tensor): source for tensor, source in self._given.values()}
        self._storages.pop(0, None)
        # Weak: the id of a tensor that is gone may be reused. Storages written in place are kept alive.
        self._made: dict[int, tuple[weakref.ref[Tensor], Source]] = {}
        self._written: dict[int, tuple[torch.UntypedStorage, Source]] = {}

    def of(self, tensor: Tensor) -> Source:
        """Where a tensor comes from, as far as known."""
        made = self._made.get(id(tensor))
        if made is not None and made[0]() is tensor:
            return made[1]
        place = _storage(tensor)
        if place and place in self._written:
            return self._written[place][1]
        given = self._given.get(id(tensor))
        return given[1] if given is not None else self._storages.get(place, Source("unseen"))

    def remember(self, result: Any, source: Source, *, in_place: bool) -> None:
        """Record which operation made the tensors of a result or wrote into them."""
        for _, tensor in tensors_in(result):
            self._made[id(tensor)] = weakref.ref(tensor), source
            if in_place:
                storage = tensor.untyped_storage()
                self._written[storage.data_ptr()] = storage, source


def _given(model: nn.Module, batch: Mapping[str, Any]) -> dict[int, tuple[Tensor, Source]]:
    sources = [(buffer, Source("buffer", name, statistic=is_statistic(name))) for name, buffer in model.named_buffers()]
    sources += [(weight, Source("weight", name)) for name, weight in model.named_parameters()]
    sources += [(tensor, Source("batch", name)) for name, tensor in tensors_in(batch)]
    return {id(tensor): (tensor, source) for tensor, source in sources}


def _storage(tensor: Tensor) -> int:
    """Address of a tensor's storage; 0 for tensors without storage of their own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def first_terminal(seen: Pass) -> Terminal | None:
    """The earliest place from which the watched outputs became non-finite; None if they are finite."""
    ends: dict[int, Terminal | None] = {}
    events: dict[int, PassEvent] = {}
    for event in seen.events:
        events[event.index] = event
        if event.error is not None:
            return Terminal("error", event)
        ends[event.index] = _begin(event, ends)
    first = _earliest(ends[source.event] for source in seen.watched if source.kind == "event")
    return first if first is not None or not seen.outputs else _infinite_output(seen)


def _infinite_output(seen: Pass) -> Terminal | None:
    """Where an output became infinite although every infinity before it may be intended, such as an excluded class."""
    ends: dict[int, Terminal | None] = {}
    for event in seen.events:
        upstream = _earliest(_follow(operand, event, ends) for operand in event.operands)
        written = event.infinite_scalar or event.operation in _MAKERS
        turned = event.impurity.positive and not any(operand.impurity.positive for operand in event.operands)
        if upstream is None and not written and (turned or not event.operands):
            upstream = Terminal("inf", event)
        ends[event.index] = upstream
    outputs = {source.event for source in seen.outputs}
    last = next((event for event in seen.events if event.index in outputs), None)
    found = _earliest(ends[index] for index in outputs)
    return found if found is not None or last is None else Terminal("inf", last)


def _begin(event: PassEvent, ends: Mapping[int, Terminal | None]) -> Terminal | None:
    with_nan = [operand for operand in event.operands if operand.impurity.nan]
    upstream = _earliest(_follow(operand, event, ends) for operand in with_nan or event.operands)
    if with_nan or upstream is not None:
        return upstream
    if event.impurity.nan:
        return Terminal("nan", event)
    if event.operands or _deliberate(event):
        return None
    return Terminal("inf", event)


def _follow(operand: Operand, event: PassEvent, ends: Mapping[int, Terminal | None]) -> Terminal | None:
    source = operand.source
    if source.kind == "event":
        return ends.get(source.event)
    if source.kind == "weight" or source.statistic:
        return Terminal("weight", event, operand)
    if operand.impurity.nan:
        kind = {"batch": "batch", "buffer": "weight"}.get(source.kind, "unseen")
        return Terminal(kind, event, operand)  # type: ignore[arg-type]  # one of the kinds
    # Infinities in buffers, constants and given masks are put there on purpose; in other inputs they are not.
    if source.kind == "batch" and "mask" not in source.name:
        return Terminal("batch", event, operand)
    return None


def _deliberate(event: PassEvent) -> bool:
    """Infinities that were written, not computed: a fill, a constant, or the logarithm of a 0/1 mask."""
    if event.infinite_scalar or event.operation in _MAKERS:
        return True
    return event.operation == "log" and not event.impurity.positive


def _earliest(found: Iterable[Terminal | None]) -> Terminal | None:
    known = [terminal for terminal in found if terminal is not None]
    return min(known, key=lambda terminal: terminal.event.index, default=None)
