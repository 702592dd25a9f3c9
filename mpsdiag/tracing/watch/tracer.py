"""The detailed pass: sees every torch operation of a forward, and records those that give non-finite values.

A TorchFunctionMode sees the operations, including SDPA, which is a function, not a module; hooks show in which module
and layer they run. It waits for the device after every operation, so it only runs once something is known to be bad.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mpsdiag.emulation import reentry
from mpsdiag.inputs.modules import ModulePath, first_tensor, mapped, uncompiled
from mpsdiag.sdpa.watch import SDPA
from mpsdiag.tracing.watch.calls import SOFTMAX, TorchCall, fully_masked_rows, has_infinite_scalar, writes_in_place
from mpsdiag.tracing.watch.model_state import FusedPaths
from mpsdiag.tracing.watch.origin_search import Operand, Pass, PassEvent, Provenance, Source, Terminal
from mpsdiag.tracing.watch.tensors import PURE, Impurity, impurity, is_judged, judged_in, tensors_in, unseen


def flag_of(output: Any, but: Tensor | None = None) -> Tensor | None:
    """A scalar on an output's device: NaN or plus infinity if a value that must be finite is not; or None.

    The maximum propagates NaN and ignores the minus infinities that exclude tokens. `but` is not looked at.
    """
    flag = None
    with unseen():
        for _, tensor in judged_in(output):
            if tensor is not but and is_judged(tensor):
                values = tensor.detach() if tensor.requires_grad else tensor
                highest = values.amax() if values.numel() > 1 else values.abs().reshape(())
                flag = highest if flag is None else torch.maximum(flag, highest.to(flag.device))
    return flag


def is_up(flag: float) -> bool:
    """Whether a flag that was read is set."""
    return math.isnan(flag) or flag == math.inf


def norm_of(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients, a scalar on the device of the first; it may overflow for finite gradients."""
    with torch.no_grad(), unseen():
        dense = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
        norms = torch._foreach_norm(dense)  # noqa: SLF001 - what clip_grad_norm_ calls
        total: Tensor = torch.linalg.vector_norm(_together([norm.float() for norm in norms]))
    return total


def readable(tensors: Sequence[Tensor]) -> bool:
    """Whether values can be read without waiting: on the CPU, unless a mode stands for a device there."""
    mode = bool(tensors) and torch._C._len_torch_dispatch_stack() > 0  # noqa: SLF001 - no public name for it
    return not mode and all(tensor.is_cpu for tensor in tensors)


def numbers(*parts: Sequence[Tensor]) -> list[list[float]]:
    """Scalars on any device as numbers, part by part. Waits for the device once."""
    every = [tensor for part in parts for tensor in part]
    with unseen():
        if readable(every):  # Nothing has to be stacked.
            read = iter([tensor.item() for tensor in every])
        else:
            read = iter(_together([tensor.detach().reshape(()).float() for tensor in every]).cpu().tolist())
    return [[float(next(read)) for _ in part] for part in parts]


def _together(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.to(values[0].device) for value in values])


KEPT_CALLS = 64
"""How many of the calls that gave the first non-finite values are kept with their tensors."""


@dataclass(frozen=True)
class Patches:
    """What a pass makes finite: outputs by the number of their operation, fully masked rows, weights and inputs."""

    outputs: frozenset[int] = frozenset()
    attention: bool = False
    given: bool = False

    def __bool__(self) -> bool:
        return bool(self.outputs) or self.attention or self.given

    def behind(self, terminal: Terminal, causes: set[str]) -> Patches:
        """With one more fault made finite, so that a pass shows the faults behind it."""
        if terminal.kind in ("weight", "batch"):
            return replace(self, given=True)
        of_attention = "dead_rows" in causes or (causes == {"bad_mask"} and terminal.kind == "nan")
        return replace(self, outputs=self.outputs | {terminal.event.index}, attention=self.attention or of_attention)

    def apply(self, index: int, call: TorchCall, result: Any, *, in_place: bool) -> Any:
        """The result of an operation, made finite if requested."""
        if index in self.outputs:
            return mapped(result, partial(made_finite, in_place=in_place))
        if self.attention and call.operation in (SDPA, *SOFTMAX, "sub") and isinstance(result, Tensor):
            dead = fully_masked_rows(call, result)
            if dead is not None:
                return torch.where(dead.unsqueeze(-1), torch.nan_to_num(result, nan=0.0), result)
        return result


def made_finite(value: Any, *, in_place: bool = False) -> Any:
    """A tensor with its non-finite values replaced by zeros; anything else unchanged."""
    if not isinstance(value, Tensor) or not impurity(value):
        return value
    if in_place:
        with torch.no_grad():
            return value.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    return torch.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0)


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
        # Faults behind a fault are found on the slow path.
        self._fused = None if self._patches else FusedPaths(model, self._saw_fused)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch until the block ends; the hooks are always removed."""
        fused = nullcontext() if self._fused is None else self._fused.kept()
        with fused, self._path.followed(self._leave_module), uncompiled(), self:
            yield

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self._path:  # Outside the model, so not caused by it.
            return func(*args, **kwargs)
        if reentry.calls_attention(func):  # Python code of torch: the calls it makes are seen.
            return reentry.with_mode(self, func, args, kwargs)
        if self._patches.given:
            args, kwargs = mapped(args, self._patch_given), mapped(kwargs, self._patch_given)
        call, in_place = TorchCall(func, args, kwargs), writes_in_place(func, kwargs)
        operands: tuple[Operand, ...] = ()
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
            if not in_place:
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
        module: nn.Module | None = None,
    ) -> Source:
        first = error is not None or not any(operand.impurity.nan for operand in operands)
        keep = first and self._kept < KEPT_CALLS
        self._kept += keep
        event = PassEvent(
            index=self.seen.operations,
            operation=call.operation,
            module=self._path.module if module is None else self._path.name_of(module),
            layer=self._path.layer if module is None else self._path.layer_around(module),
            impurity=state,
            operands=operands,
            infinite_scalar=has_infinite_scalar((call.args, call.kwargs)),
            call=_copied(call) if keep else None,
            error=error,
        )
        self.seen.events.append(event)
        return Source("event", event=event.index)

    def _saw_fused(self, module: nn.Module, named: dict[str, Any], result: Any) -> None:
        """A fused path of torch's own transformer layers gave values that its slow path does not give."""
        call = TorchCall(type(module), (), named, result)
        with unseen():
            operands = self._operands(call)
            source = self._note(call, _of_all(result), operands, module=module)
            self._provenance.remember(result, source, in_place=False)
            self.seen.operations += 1

    def _operands(self, call: TorchCall) -> tuple[Operand, ...]:
        """The non-finite inputs."""
        states = [(name, tensor, impurity(tensor)) for name, tensor in tensors_in(call.named)]
        return tuple(Operand(name, state, self._provenance.of(tensor)) for name, tensor, state in states if state)

    def _patch_given(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        source = self._provenance.of(value)
        broken = source.kind == "buffer" and (source.statistic or impurity(value).nan)
        return made_finite(value) if broken or source.kind in ("weight", "batch") else value

    def _leave_module(self, module: nn.Module, output: Any) -> None:
        hidden = first_tensor(output)
        layer = self._path.layer_of(module)
        if layer is not None and hidden is not None and hidden.is_floating_point():
            with unseen():
                state = impurity(hidden)
                if hidden.dim() == 3 and not hidden.is_nested:
                    self.seen.spread.append(_spread(layer, hidden))
            if state:
                self._watch(hidden, state, module)
        if module is self._model and output is not None:
            with unseen():
                found = [(tensor, impurity(tensor)) for _, tensor in judged_in(output)]
            for tensor, state in found:
                # Minus infinity is a fault only in a scalar: models write it into the logits of excluded tokens.
                if state.nan or state.positive or (state.negative and tensor.numel() == 1):
                    self.seen.outputs.append(self._watch(tensor, state, module))
        if self._claim is not None:  # What no torch function made, such as an autograd.Function.
            self._claim(self._path.module, self._path.layer, None, output)

    def _watch(self, tensor: Tensor, state: Impurity, module: nn.Module) -> Source:
        source = self._provenance.of(tensor)
        if source.kind != "event":
            # Passed on unchanged, or made outside torch functions, as by a compiled kernel: name the module.
            name = type(module).__name__
            operands = () if source.kind == "unseen" else (Operand(name, state, source),)
            layer = self._path.layer_of(module)
            event = PassEvent(self.seen.operations, name, self._path.module, layer, state, operands)
            self.seen.events.append(event)
            self.seen.operations += 1
            source = Source("event", event=event.index)
        self.seen.watched.append(source)
        return source


def _spread(layer: int, hidden: Tensor) -> dict[str, Any]:
    """The number of sequences and of positions where a hidden state (sequences, positions, channels) is bad."""
    bad = (~torch.isfinite(hidden)).any(-1)
    counts = {"sequences": int(bad.any(-1).sum()), "positions": int(bad.sum()), "of": bad.numel()}
    return {"layer": layer, **counts}


def _of_all(value: Any) -> Impurity:
    """The non-finite values of all tensors of an output together."""
    states = [impurity(tensor) for _, tensor in tensors_in(value)]
    nan, positive = any(s.nan for s in states), any(s.positive for s in states)
    return Impurity(nan, positive, any(s.negative for s in states))


def _copied(call: TorchCall) -> TorchCall:
    """A call with its tensors as they are now, because they may be written into later."""
    args, kwargs, result = mapped((call.args, call.kwargs, call.result), _frozen)
    return TorchCall(call.func, args, kwargs, result)


def _frozen(value: Any) -> Any:
    """A copy of a tensor, but not of weights, which are not written into and can be large."""
    if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)
