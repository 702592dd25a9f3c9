"""The detailed pass: sees every torch operation of a forward, and writes down those that give non-finite values.

A TorchFunctionMode sees the operations, SDPA among them, which is a function and no module; hooks tell in which module
and layer they run. It waits for the device after every operation, so it is only run once something is known to be bad.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mpsdiag.diagnosis.hooks import hooked
from mpsdiag.diagnosis.observer import decoder_layers, first_tensor
from mpsdiag.diagnosis.tracing.events import Call, Event, LayerRows, Operand, Pass, Source
from mpsdiag.diagnosis.tracing.healing import Healing, healed
from mpsdiag.diagnosis.tracing.operations import (
    arguments,
    has_infinite_scalar,
    operation_name,
    writes_in_place,
)
from mpsdiag.diagnosis.tracing.tensors import PURE, Impurity, impurity, mapped, tensors_in

KEPT_CALLS = 64
"""Calls in which a value was born are kept with their tensors, up to this many."""


class Tracer(TorchFunctionMode):
    """One detailed pass. Enter it inside an emulation, not around it.

    Args:
        model: The model that will run.
        batch: Its keyword arguments, as they will be given.
        healing: What is made finite on the way.
        claim: Called with (module, layer, operation, output) after every operation, and with None for the operation
            when a module is left; the trace of a backward is built from that.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        healing: Healing | None = None,
        claim: Callable[[str, int | None, str | None, Any], None] | None = None,
    ) -> None:
        super().__init__()
        self.seen = Pass()
        self._model = model
        self._healing = healing or Healing()
        self._claim = claim
        self._names = {module: name for name, module in model.named_modules()}
        self._layers = {layer: index for index, layer in enumerate(decoder_layers(model))}
        self._path: list[nn.Module] = []
        self._given = _given(model, batch)
        self._storages = {_storage(tensor): source for tensor, source in self._given.values()}
        self._storages.pop(0, None)
        # Weak: a tensor's number may be given to another once it is gone. Storages written in place are kept alive.
        self._made: dict[int, tuple[weakref.ref[Tensor], Source]] = {}
        self._written: dict[int, tuple[torch.UntypedStorage, Source]] = {}
        self._kept = 0

    @contextmanager
    def watching(self) -> Iterator[Pass]:
        """Watch until the block ends; the hooks are removed whatever happens."""
        try:
            with hooked(self._names, self._enter_module, self._leave_module, always=True), self:
                yield self.seen
        finally:
            self._path.clear()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self._path:  # Outside the model: not its doing.
            return func(*args, **kwargs)
        name = operation_name(func)
        in_place = writes_in_place(func, kwargs)
        if self._healing.given:
            args, kwargs = mapped(args, self._heal_given), mapped(kwargs, self._heal_given)
        operands: tuple[Operand, ...] | None = None
        kept = (args, kwargs)
        if in_place:
            operands = self._operands(name, args, kwargs)
            kept = mapped(args, _copied), mapped(kwargs, _copied)
        try:
            result = func(*args, **kwargs)
        except (IndexError, RuntimeError) as problem:
            self._note(name, PURE, (), Call(func, *kept), error=problem)
            raise
        index = self.seen.operations
        written = args[0] if in_place and result is None and args else result
        if self._healing:
            written = self._healing.apply(
                index, name, arguments(name, args, kwargs), written, in_place=in_place
            )
            result = None if result is None else written
        state = _of_all(written)
        if state:
            if operands is None:
                operands = self._operands(name, args, kwargs)
            source = self._note(
                name, state, operands, Call(func, *kept, result=written), has_infinite_scalar((args, kwargs))
            )
            self._remember(written, source, in_place=in_place)
        if self._claim is not None:
            module, layer = self._place()
            self._claim(module, layer, name, result)
        self.seen.operations += 1
        return result

    def _note(
        self,
        name: str,
        state: Impurity,
        operands: tuple[Operand, ...],
        call: Call,
        infinite: bool = False,
        error: BaseException | None = None,
    ) -> Source:
        module, layer = self._place()
        born = error is not None or not any(operand.impurity.nan for operand in operands)
        keep = born and self._kept < KEPT_CALLS
        self._kept += keep
        event = Event(
            index=self.seen.operations,
            operation=name,
            module=module,
            layer=layer,
            impurity=state,
            operands=operands,
            infinite_scalar=infinite,
            call=Call(
                call.func,
                mapped(call.args, _copied),
                mapped(call.kwargs, _copied),
                mapped(call.result, _copied),
            )
            if keep
            else None,
            error=error,
        )
        self.seen.events.append(event)
        return Source("event", event=event.index)

    def _operands(self, name: str, args: Any, kwargs: Any) -> tuple[Operand, ...]:
        """The inputs that are not finite."""
        found = []
        for label, tensor in tensors_in(arguments(name, args, kwargs)):
            state = impurity(tensor)
            if state:
                found.append(Operand(label, state, self._source(tensor)))
        return tuple(found)

    def _source(self, tensor: Tensor) -> Source:
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

    def _remember(self, written: Any, source: Source, *, in_place: bool) -> None:
        for _, tensor in tensors_in(written):
            self._made[id(tensor)] = weakref.ref(tensor), source
            if in_place:
                storage = tensor.untyped_storage()
                self._written[storage.data_ptr()] = storage, source

    def _heal_given(self, value: Any) -> Any:
        given = isinstance(value, Tensor) and self._source(value).kind in ("weight", "batch")
        return healed(value) if given else value

    def _place(self) -> tuple[str, int | None]:
        layer = next((self._layers[m] for m in reversed(self._path) if m in self._layers), None)
        return self._names[self._path[-1]], layer

    def _enter_module(self, module: nn.Module, _: Any) -> None:
        self._path.append(module)

    def _leave_module(self, module: nn.Module, _: Any, output: Any) -> None:
        if module in self._layers:
            hidden = first_tensor(output)
            if hidden is not None and hidden.is_floating_point():
                self._watch_layer(module, hidden)
        if module is self._model and output is not None:
            self._watch_output(output)
        if self._claim is not None:  # What no torch function made, such as an autograd.Function.
            self._claim(*self._place(), None, output)
        self._path.pop()

    def _watch_layer(self, module: nn.Module, hidden: Tensor) -> None:
        with _unseen():
            state = impurity(hidden)
            if hidden.dim() == 3:
                self.seen.layers.append(LayerRows(self._layers[module], (~torch.isfinite(hidden)).any(-1)))
        if state:
            self._watch(hidden, state, type(module).__name__, module)

    def _watch_output(self, output: Any) -> None:
        """Minus infinity in a tensor that is no scalar is no fault: models write it into logits they rule out."""
        with _unseen():
            found = [(tensor, impurity(tensor)) for _, tensor in tensors_in(outputs(output))]
        for tensor, state in found:
            if state.nan or state.positive or (state.negative and tensor.numel() == 1):
                self._watch(tensor, state, type(self._model).__name__, self._model)

    def _watch(self, tensor: Tensor, state: Impurity, name: str, module: nn.Module) -> None:
        source = self._source(tensor)
        if source.kind != "event":
            # Handed on as given, or made by what is no torch function, such as a compiled kernel: name the module.
            operands = () if source.kind == "unseen" else (Operand(name, state, source),)
            module_name, layer = self._names[module], self._layers.get(module)
            event = Event(self.seen.operations, name, module_name, layer, state, operands)
            self.seen.events.append(event)
            self.seen.operations += 1
            source = Source("event", event=event.index)
        self.seen.watched.append(source)


def _given(model: nn.Module, batch: Mapping[str, Any]) -> dict[int, tuple[Tensor, Source]]:
    """Weights, buffers and inputs by identity; shared weights go by their first name."""
    found: dict[int, tuple[Tensor, Source]] = {}
    for name, weight in model.named_parameters():
        found[id(weight)] = weight, Source("weight", name)
    for name, buffer in model.named_buffers():
        found.setdefault(id(buffer), (buffer, Source("buffer", name)))
    for name, tensor in tensors_in(batch):
        found[id(tensor)] = tensor, Source("batch", name)
    return found


def outputs(output: Any) -> Any:
    """Loss and logits of a model's output; whatever there is where it has neither."""
    if isinstance(output, Mapping):
        named = {name: output[name] for name in ("loss", "logits") if isinstance(output.get(name), Tensor)}
        return named or {name: value for name, value in output.items() if isinstance(value, Tensor)}
    return output


def _unseen() -> Any:
    """Our own look at tensors is none of the model's operations."""
    return torch._C.DisableTorchFunction()  # noqa: SLF001 - no public name for it


def _of_all(value: Any) -> Impurity:
    """What the tensors of an output hold between them."""
    states = [state for _, tensor in tensors_in(value) if (state := impurity(tensor))]
    if not states:
        return PURE
    return Impurity(
        any(s.nan for s in states), any(s.positive for s in states), any(s.negative for s in states)
    )


def _copied(value: Any) -> Any:
    """A tensor as it is now, for it may be written into later; weights are not, and can be large."""
    if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def _storage(tensor: Tensor) -> int:
    """Where a tensor's numbers lie; 0 for tensors without storage of their own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0
