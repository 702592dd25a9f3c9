"""Make a call as small and simple as possible while it still shows the fault when run alone."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mpsdiag.emulation.mode import emulated
from mpsdiag.emulation.selection import Emulation
from mpsdiag.inputs.modules import mapped
from mpsdiag.tracing.watch.calls import TorchCall, in_float64, replay, run
from mpsdiag.tracing.watch.tensors import impurity, tensors_in

Shows = Callable[[tuple[Tensor, ...]], bool]

TRIES = 2000
"""Largest number of runs of the operation."""
STARTS = 12
"""Largest number of places where a slice may start."""
LITERAL = 64
"""Tensors of up to this many numbers are written out; larger ones are drawn from a seed if that shows the fault."""
ROUNDINGS = 16
"""Required distance from float64, in roundings: what is reported upstream should be beyond doubt."""

Fault = Literal["non-finite", "wrong"]


@dataclass(frozen=True)
class Placeholder:
    """Stands for tensor number `index` in the arguments of a call."""

    index: int


@dataclass(frozen=True)
class IsolatedCall:
    """A call on its own, with placeholders for its tensors: how it runs, and what it shows.

    `names` are the names of the tensors, `wants` says which of them require a gradient, `grad` whether grad mode is on.
    """

    call: TorchCall
    names: tuple[str, ...]
    wants: tuple[bool, ...]
    grad: bool
    device: torch.device
    emulation: Emulation | None
    fault: Fault

    def filled(self, tensors: tuple[Tensor, ...]) -> TorchCall:
        """The call with tensors in the places of the placeholders."""

        def fill(value: Any) -> Any:
            return tensors[value.index] if isinstance(value, Placeholder) else value

        return TorchCall(self.call.func, mapped(self.call.args, fill), mapped(dict(self.call.kwargs), fill))


def alone(
    call: TorchCall, *, grad: bool, emulation: Emulation | None, fault: Fault
) -> tuple[IsolatedCall, tuple[Tensor, ...]]:
    """Take a call apart into the call without tensors, and its tensors, detached."""
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
    empty = TorchCall(call.func, args, kwargs)
    lone = IsolatedCall(empty, tuple(names), wants, grad, device, emulation, fault)
    return lone, tuple(tensor.detach() for tensor in tensors)


def shows(lone: IsolatedCall, tensors: tuple[Tensor, ...]) -> bool:
    """Run the call alone and check whether the fault is there."""
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
        state = impurity(found)
        # Minus infinity in, minus infinity out: that is a mask, no fault.
        return state.nan or state.positive or (state.negative and not any(impurity(t).negative for t in tensors))
    return _wrong(lone.filled(tensors), found.detach().cpu())


def _wrong(call: TorchCall, found: Tensor) -> bool:
    """Whether it is much further from float64 than the CPU, and than rounding explains."""
    plain = replay(call)
    exact = in_float64(call)
    if plain is None or exact is None or exact.shape != found.shape or plain.shape != found.shape:
        return False
    distance, cpu = (float((x.double() - exact).abs().max()) for x in (found, plain))
    return distance > max(4 * cpu, ROUNDINGS * torch.finfo(found.dtype).eps * float(exact.abs().max()))


@dataclass(frozen=True)
class Made:
    """A tensor and the torch expression that makes it."""

    tensor: Tensor
    expression: str


def smallest(tensors: tuple[Tensor, ...], shows: Shows) -> tuple[Tensor, ...]:
    """Shrink dimensions, those of equal size together and each alone, until nothing smaller shows the fault."""
    tries = iter(range(TRIES))

    def check(candidate: tuple[Tensor, ...]) -> bool:
        return next(tries, None) is not None and shows(candidate)

    while smaller := next(filter(None, (_shrink(tensors, group, check) for group in _groups(tensors))), None):
        tensors = smaller
    dense = tuple(tensor.contiguous() for tensor in tensors)
    return dense if shows(dense) else tuple(_laid_out(tensor) for tensor in tensors)


def plainest(tensors: tuple[Tensor, ...], shows: Shows) -> list[Made] | None:
    """Replace numbers by ones, by seeded random ones, or by rounded ones, if the fault still shows.

    None if a tensor is too large to be written out.
    """
    made: list[Made] = []
    for index, tensor in enumerate(tensors):
        before, after = tuple(item.tensor for item in made), tensors[index + 1 :]
        for candidate in _candidates(tensor, seed=index):
            # Written out, a tensor without numbers loses its shape.
            same = candidate.tensor.shape == tensor.shape
            if same and shows((*before, candidate.tensor, *after)):
                made.append(candidate)
                break
        else:
            return None
    return made


def _groups(tensors: tuple[Tensor, ...]) -> Iterable[tuple[tuple[int, int], ...]]:
    """Dimensions to cut together: all of one size, those of one size at the same place, each alone."""
    places = [(t, d) for t, tensor in enumerate(tensors) for d in range(tensor.dim()) if tensor.shape[d] > 1]
    sizes = sorted({tensors[t].shape[d] for t, d in places}, reverse=True)
    same = [[(t, d) for t, d in places if tensors[t].shape[d] == size] for size in sizes]
    aligned = [
        [(t, d) for t, d in group if d - tensors[t].dim() == place]
        for group in same
        for place in sorted({d - tensors[t].dim() for t, d in group})
    ]
    return dict.fromkeys(map(tuple, (*same, *aligned, *([place] for place in places))))


def _shrink(tensors: tuple[Tensor, ...], group: tuple[tuple[int, int], ...], check: Shows) -> tuple[Tensor, ...] | None:
    (t, d), *_ = group
    size = tensors[t].shape[d]
    for length in dict.fromkeys((1, 2, size // 4, size // 2, size - 1)):
        if not 0 < length < size:
            continue
        step = max(1, (size - length) // (STARTS - 1))
        for start in dict.fromkeys((0, size - length, *range(0, size - length + 1, step))):
            cut = list(tensors)
            for t, d in group:
                cut[t] = cut[t].narrow(d, start, length)
            if check(tuple(cut)):
                return tuple(cut)
    return None


def _memory_order(tensor: Tensor) -> tuple[list[int], list[int]]:
    """The dimensions in the order they have in memory, and the order that puts them back."""
    order = list(range(tensor.dim()))
    if not tensor.is_contiguous():
        order.sort(key=lambda d: -tensor.stride()[d])
    return order, [order.index(d) for d in range(tensor.dim())]


def _laid_out(tensor: Tensor) -> Tensor:
    """Dense again, with the dimensions in the order they have in memory."""
    order, back = _memory_order(tensor)
    return tensor.permute(order).contiguous().permute(back)


def _candidates(tensor: Tensor, seed: int) -> Iterator[Made]:
    """Tensors that may replace it, the simplest first; strides are kept, because a kernel may ignore them."""
    order, back = _memory_order(tensor)
    source = tensor.detach().permute(order).cpu()
    shape, floating, dtype = list(source.shape), tensor.is_floating_point(), tensor.dtype
    sizes = ", ".join(map(str, shape)) or "()"
    turned = "" if tensor.is_contiguous() else f".permute({', '.join(map(str, back))})"

    def made(values: Tensor, expression: str) -> Made:
        return Made(values.to(dtype).to(tensor.device).permute(back), f"{expression}{turned}")

    def written(digits: int) -> Made:
        numbers = _rounded(source.tolist(), digits)
        values = torch.tensor(numbers, dtype=torch.float64) if floating else source
        # As Python writes them: `inf` and `nan` are names in the script.
        return made(values, f"torch.tensor({numbers!r}, dtype={dtype})")

    if floating:
        yield made(torch.ones(shape), f"torch.ones({sizes}, dtype={dtype})")
        yield made(torch.zeros(shape), f"torch.zeros({sizes}, dtype={dtype})")
    if tensor.numel() <= LITERAL:
        yield from map(written, (1, 2, 4, 9, 17) if floating else (17,))
        return
    if dtype == torch.bool:
        yield made(torch.ones(shape), f"torch.ones({sizes}, dtype={dtype})")
        if tensor.dim() >= 2:
            yield made(torch.ones(shape).tril(), f"torch.ones({sizes}, dtype={dtype}).tril()")
    if floating:
        spread = float(source.double().abs().nan_to_num(posinf=0.0).max()) or 1.0
        for scale in (1.0, float(f"{spread:.2g}")):
            values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
            drawn = f"torch.randn({sizes}, generator=torch.Generator().manual_seed({seed}))"
            yield made(values, f"({drawn} * {scale}).to({dtype})")
    if tensor.numel() <= 64 * LITERAL:
        yield written(17)


def _rounded(value: object, digits: int) -> object:
    """Nested lists of numbers, with a number of digits for floats."""
    if isinstance(value, list):
        return [_rounded(item, digits) for item in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value
