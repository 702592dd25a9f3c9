"""The detailed pass: sees every torch operation of a forward, and writes down those that give non-finite values.

A TorchFunctionMode sees the operations, SDPA among them, which is a function and no module; hooks tell in which module
and layer they run. It waits for the device after every operation, so it is only run once something is known to be bad.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mpsdiag.inputs.modules import ModulePath, first_tensor
from mpsdiag.tracing.watch.operations import TorchCall, has_infinite_scalar, writes_in_place
from mpsdiag.tracing.watch.origin_search import Operand, Pass, PassEvent, Provenance, Source
from mpsdiag.tracing.watch.patched_rerun import Patches, made_finite
from mpsdiag.tracing.watch.tensors import PURE, Impurity, impurity, judged_in, mapped, tensors_in

KEPT_CALLS = 64
"""Calls that gave the first non-finite values are kept with their tensors, up to this many."""


class Tracer(TorchFunctionMode):
    """One detailed pass. Enter it inside an emulation, not around it."""

    def __init__(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        patches: Patches | None = None,
        claim: Callable[[str, int | None, str | None, Any], None] | None = None,
    ) -> None:
        super().__init__()
        self.seen = Pass()
        self._model = model
        self._patches = patches or Patches()
        self._claim = claim
        self._path = ModulePath(model)
        self._provenance = Provenance(model, batch)
        self._kept = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch until the block ends; the hooks are removed whatever happens."""
        with self._path.followed(self._leave_module), self:
            yield

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self._path:  # Outside the model: not its doing.
            return func(*args, **kwargs)
        if self._patches.given:
            args, kwargs = mapped(args, self._patch_given), mapped(kwargs, self._patch_given)
        call, in_place = TorchCall(func, args, kwargs), writes_in_place(func, kwargs)
        operands: tuple[Operand, ...] | None = None
        if in_place:  # Its inputs are gone afterwards.
            call, operands = _copied(call), self._operands(call)
        try:
            result = func(*args, **kwargs)
        except (IndexError, RuntimeError) as problem:
            self._note(call, PURE, (), error=problem)
            raise
        written = args[0] if in_place and result is None and args else result
        if self._patches:
            written = self._patches.apply(self.seen.operations, call, written, in_place=in_place)
            result = None if result is None else written
        state = _of_all(written)
        if state:
            if operands is None:
                operands = self._operands(call)
            source = self._note(TorchCall(func, call.args, call.kwargs, written), state, operands)
            self._provenance.remember(written, source, in_place=in_place)
        if self._claim is not None:
            self._claim(self._path.module, self._path.layer, call.operation, result)
        self.seen.operations += 1
        return result

    def _note(
        self,
        call: TorchCall,
        state: Impurity,
        operands: tuple[Operand, ...],
        error: BaseException | None = None,
    ) -> Source:
        first = error is not None or not any(operand.impurity.nan for operand in operands)
        keep = first and self._kept < KEPT_CALLS
        self._kept += keep
        event = PassEvent(
            index=self.seen.operations,
            operation=call.operation,
            module=self._path.module,
            layer=self._path.layer,
            impurity=state,
            operands=operands,
            infinite_scalar=has_infinite_scalar((call.args, call.kwargs)),
            call=_copied(call) if keep else None,
            error=error,
        )
        self.seen.events.append(event)
        return Source("event", event=event.index)

    def _operands(self, call: TorchCall) -> tuple[Operand, ...]:
        """The inputs that are not finite."""
        states = [(name, tensor, impurity(tensor)) for name, tensor in tensors_in(call.named)]
        return tuple(
            Operand(name, state, self._provenance.of(tensor)) for name, tensor, state in states if state
        )

    def _patch_given(self, value: Any) -> Any:
        given = isinstance(value, Tensor) and self._provenance.of(value).kind in ("weight", "batch")
        return made_finite(value) if given else value

    def _leave_module(self, module: nn.Module, output: Any) -> None:
        hidden = first_tensor(output)
        layer = self._path.layer_of(module)
        if layer is not None and hidden is not None and hidden.is_floating_point():
            self._watch_layer(module, layer, hidden)
        if module is self._model and output is not None:
            self._watch_output(output)
        if self._claim is not None:  # What no torch function made, such as an autograd.Function.
            self._claim(self._path.module, self._path.layer, None, output)

    def _watch_layer(self, module: nn.Module, layer: int, hidden: Tensor) -> None:
        with _unseen():
            state = impurity(hidden)
            if hidden.dim() == 3:
                self.seen.spread.append(_spread(layer, hidden))
        if state:
            self._watch(hidden, state, module)

    def _watch_output(self, output: Any) -> None:
        """Minus infinity is a fault in a scalar only: models write it into logits they rule out."""
        with _unseen():
            found = [(tensor, impurity(tensor)) for _, tensor in judged_in(output)]
        for tensor, state in found:
            if state.nan or state.positive or (state.negative and tensor.numel() == 1):
                self._watch(tensor, state, self._model)

    def _watch(self, tensor: Tensor, state: Impurity, module: nn.Module) -> None:
        source = self._provenance.of(tensor)
        if source.kind != "event":
            # Passed on as given, or made outside torch functions, as by a compiled kernel: name the module.
            name = type(module).__name__
            operands = () if source.kind == "unseen" else (Operand(name, state, source),)
            layer = self._path.layer_of(module)
            event = PassEvent(self.seen.operations, name, self._path.module, layer, state, operands)
            self.seen.events.append(event)
            self.seen.operations += 1
            source = Source("event", event=event.index)
        self.seen.watched.append(source)


def _unseen() -> Any:
    """Our own look at tensors is none of the model's operations."""
    return torch._C.DisableTorchFunction()  # noqa: SLF001 - no public name for it


def _spread(layer: int, hidden: Tensor) -> dict[str, Any]:
    """In how many sequences, and at how many positions, a hidden state (sequences, positions, channels) is bad."""
    bad = (~torch.isfinite(hidden)).any(-1)
    return {
        "layer": layer,
        "sequences": int(bad.any(-1).sum()),
        "positions": int(bad.sum()),
        "of": bad.numel(),
    }


def _of_all(value: Any) -> Impurity:
    """What the tensors of an output hold between them."""
    states = [state for _, tensor in tensors_in(value) if (state := impurity(tensor))]
    if not states:
        return PURE
    return Impurity(
        any(s.nan for s in states), any(s.positive for s in states), any(s.negative for s in states)
    )


def _copied(call: TorchCall) -> TorchCall:
    """A call with its tensors as they are now, for they may be written into later."""
    return TorchCall(
        call.func, mapped(call.args, _frozen), mapped(call.kwargs, _frozen), mapped(call.result, _frozen)
    )


def _frozen(value: Any) -> Any:
    """A copy of a tensor; weights are not written into, and can be large."""
    if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)
