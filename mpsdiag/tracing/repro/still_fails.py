"""Does a single call of an operation, by itself, still show the fault? The question every reduction asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mpsdiag.emulation import Emulation, emulated
from mpsdiag.tracing.watch.events import Call
from mpsdiag.tracing.watch.operations import operation_name
from mpsdiag.tracing.watch.replay import in_float64, replay, run
from mpsdiag.tracing.watch.tensors import impurity, mapped, tensors_in

ROUNDINGS = 16
"""Further from float64 than this many roundings: what is reported upstream should be beyond doubt."""

Fault = Literal["non-finite", "wrong"]


@dataclass(frozen=True)
class Placeholder:
    """Stands for tensor number `index` in the arguments of a call."""

    index: int


@dataclass(frozen=True)
class IsolatedCall:
    """A call by itself: the function, its arguments with placeholders, and under what it runs.

    Attributes:
        func: The torch function.
        args: Positional arguments; tensors are placeholders.
        kwargs: Keyword arguments; likewise.
        names: What the tensors are called.
        wants: Which of them want a gradient.
        grad: Grad mode is on.
        device: Where it ran.
        emulation: The emulation it ran under.
        fault: What it is to show.
    """

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    names: tuple[str, ...]
    wants: tuple[bool, ...]
    grad: bool
    device: torch.device
    emulation: Emulation | None
    fault: Fault

    @property
    def operation(self) -> str:
        """The name of the operation."""
        return operation_name(self.func)

    def filled(self, tensors: tuple[Tensor, ...]) -> Call:
        """The call with tensors in the places of the placeholders."""

        def fill(value: Any) -> Any:
            return tensors[value.index] if isinstance(value, Placeholder) else value

        return Call(self.func, mapped(self.args, fill), mapped(dict(self.kwargs), fill))


def alone(
    call: Call, *, grad: bool, emulation: Emulation | None, fault: Fault
) -> tuple[IsolatedCall, tuple[Tensor, ...]]:
    """Take a call apart into its shape and its tensors.

    Args:
        call: As it was seen.
        grad: Whether grad mode was on.
        emulation: What was in effect.
        fault: What it showed.

    Returns:
        The call without tensors, and the tensors, detached.
    """
    tensors: list[Tensor] = []
    names: list[str] = []
    labels = {id(tensor): name for name, tensor in tensors_in(call.named)}

    def take(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        tensors.append(value)
        names.append(labels.get(id(value), f"argument {len(names)}"))
        return Placeholder(len(tensors) - 1)

    args, kwargs = mapped(tuple(call.args), take), mapped(dict(call.kwargs), take)
    device = tensors[0].device if tensors else torch.device("cpu")
    wants = tuple(grad and tensor.requires_grad for tensor in tensors)
    lone = IsolatedCall(call.func, args, kwargs, tuple(names), wants, grad, device, emulation, fault)
    return lone, tuple(tensor.detach() for tensor in tensors)


def shows(lone: IsolatedCall, tensors: tuple[Tensor, ...]) -> bool:
    """Run the call by itself and see whether the fault is there.

    Args:
        lone: The call.
        tensors: What to put in; inputs that are NaN, or infinite where no mask could be, never count.
    """
    if any(impurity(tensor).nan or impurity(tensor).positive for tensor in tensors):
        return False
    ready = tuple(t.detach().clone(memory_format=torch.preserve_format) for t in tensors)
    for tensor, wanted in zip(ready, lone.wants, strict=True):
        tensor.requires_grad_(wanted and tensor.is_floating_point())
    with emulated(lone.emulation), torch.set_grad_enabled(lone.grad):
        found = run(lone.filled(ready))
    if found is None or found.numel() == 0:
        return False
    if lone.fault == "non-finite":
        return bool(impurity(found)) and not _deliberate(found, tensors)
    return _wrong(lone.filled(tensors), found.detach().cpu())


def _deliberate(found: Tensor, tensors: tuple[Tensor, ...]) -> bool:
    """Minus infinity in, minus infinity out: that is a mask, no fault."""
    state = impurity(found)
    return not state.nan and not state.positive and any(impurity(tensor).negative for tensor in tensors)


def _wrong(call: Call, found: Tensor) -> bool:
    """Much further from float64 than the CPU is, and than rounding can be."""
    plain = replay(call)
    exact = in_float64(call)
    if plain is None or exact is None or exact.shape != found.shape or plain.shape != found.shape:
        return False
    distance, cpu = (float((x.double() - exact).abs().max()) for x in (found, plain))
    return distance > max(4 * cpu, ROUNDINGS * torch.finfo(found.dtype).eps * float(exact.abs().max()))
