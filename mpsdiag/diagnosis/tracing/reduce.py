"""Make the tensors of a call as small and as plain as they can be while the fault still shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Shows = Callable[[tuple[Tensor, ...]], bool]

TRIES = 2000
"""Runs of the operation at most."""
STARTS = 12
"""Places where a slice is begun at most."""
LITERAL = 64
"""Tensors of up to this many numbers are written out; larger ones are drawn from a seed if that still shows it."""


@dataclass(frozen=True)
class Made:
    """A tensor and the torch expression that makes it."""

    tensor: Tensor
    expression: str


class _Budget:
    def __init__(self, shows: Shows) -> None:
        self._shows = shows
        self._left = TRIES

    def __call__(self, tensors: tuple[Tensor, ...]) -> bool:
        self._left -= 1
        return self._left >= 0 and self._shows(tensors)


def smallest(tensors: tuple[Tensor, ...], shows: Shows) -> tuple[Tensor, ...]:
    """Cut dimensions down, those of equal size together and each by itself, until nothing smaller shows the fault.

    Args:
        tensors: With which it shows.
        shows: Whether it still does.
    """
    check = _Budget(shows)
    progress = True
    while progress:
        progress = False
        for group in list(_groups(tensors)):
            smaller = _shrink(tensors, group, check)
            if smaller is not None:
                tensors, progress = smaller, True
                break
    dense = tuple(tensor.contiguous() for tensor in tensors)
    return dense if shows(dense) else tuple(_laid_out(tensor) for tensor in tensors)


def plainest(tensors: tuple[Tensor, ...], names: tuple[str, ...], shows: Shows) -> list[Made] | None:
    """Replace numbers by ones, by seeded random ones, or by rounded ones, where the fault still shows.

    Args:
        tensors: With which it shows.
        names: Of the tensors; only for seeds.
        shows: Whether it still does.

    Returns:
        Tensors with the expressions that make them; None if one is too large to be written out.
    """
    made: list[Made] = [Made(tensor, "") for tensor in tensors]
    for index in range(len(names)):
        others = [item.tensor for item in made]
        for candidate in _candidates(tensors[index], seed=index):
            if candidate.tensor.shape != tensors[index].shape:
                continue
            if shows((*others[:index], candidate.tensor, *others[index + 1 :])):
                made[index] = candidate
                break
        else:
            return None
    return made


def _groups(tensors: tuple[Tensor, ...]) -> Iterator[list[tuple[int, int]]]:
    """Dimensions to cut together: all of one size, those of one size at the same place, each alone."""
    places = [(t, d) for t, tensor in enumerate(tensors) for d in range(tensor.dim()) if tensor.shape[d] > 1]
    seen: set[tuple[tuple[int, int], ...]] = set()
    sizes = sorted({tensors[t].shape[d] for t, d in places}, reverse=True)
    same = [[(t, d) for t, d in places if tensors[t].shape[d] == size] for size in sizes]
    aligned = [
        [(t, d) for t, d in group if d - tensors[t].dim() == place]
        for group in same
        for place in sorted({d - tensors[t].dim() for t, d in group})
    ]
    for group in (*same, *aligned, *([place] for place in places)):
        key = tuple(group)
        if group and key not in seen:
            seen.add(key)
            yield group


def _shrink(
    tensors: tuple[Tensor, ...], group: list[tuple[int, int]], check: _Budget
) -> tuple[Tensor, ...] | None:
    first = group[0]
    size = tensors[first[0]].shape[first[1]]
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


def _laid_out(tensor: Tensor) -> Tensor:
    """Dense again, with the dimensions in the order they have in memory."""
    order = sorted(range(tensor.dim()), key=lambda d: -tensor.stride()[d])
    dense = tensor.permute(order).contiguous()
    return dense.permute([order.index(d) for d in range(tensor.dim())])


def _candidates(tensor: Tensor, seed: int) -> Iterator[Made]:
    dtype = f"torch.{str(tensor.dtype).removeprefix('torch.')}"
    order = sorted(range(tensor.dim()), key=lambda d: -tensor.stride()[d])
    back = [order.index(d) for d in range(tensor.dim())]
    turned = "" if tensor.is_contiguous() else f".permute({', '.join(map(str, back))})"
    shape = [tensor.shape[d] for d in order] if turned else list(tensor.shape)

    def laid(flat: Tensor) -> Tensor:
        value = flat.to(tensor.dtype).to(tensor.device)
        return value.permute(back) if turned else value

    sizes = ", ".join(map(str, shape))
    if tensor.is_floating_point():
        yield Made(laid(torch.ones(shape)), f"torch.ones({sizes}, dtype={dtype}){turned}")
        yield Made(laid(torch.zeros(shape)), f"torch.zeros({sizes}, dtype={dtype}){turned}")
    source = tensor.permute(order) if turned else tensor
    if tensor.numel() <= LITERAL:
        for digits in (1, 2, 4, 9, 17) if tensor.is_floating_point() else (17,):
            numbers = _rounded(source, digits)
            value = laid(
                torch.tensor(numbers, dtype=torch.float64) if tensor.is_floating_point() else source.cpu()
            )
            yield Made(value, f"torch.tensor({_written(numbers)}, dtype={dtype}){turned}")
        return
    if tensor.dtype == torch.bool:
        yield Made(laid(torch.ones(shape)), f"torch.ones({sizes}, dtype={dtype}){turned}")
        if tensor.dim() >= 2:
            yield Made(laid(torch.ones(shape).tril()), f"torch.ones({sizes}, dtype={dtype}).tril(){turned}")
    if tensor.is_floating_point():
        spread = float(tensor.cpu().double().abs().nan_to_num(posinf=0.0).max()) or 1.0
        for scale in (1.0, float(f"{spread:.2g}")):
            values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
            drawn = f"torch.randn({sizes}, generator=torch.Generator().manual_seed({seed}))"
            yield Made(laid(values), f"({drawn} * {scale}).to({dtype}){turned}")
    if tensor.numel() <= 64 * LITERAL:
        numbers = _rounded(source, 17)
        yield Made(tensor, f"torch.tensor({_written(numbers)}, dtype={dtype}){turned}")


def _rounded(tensor: Tensor, digits: int) -> object:
    def shorten(value: object) -> object:
        if isinstance(value, list):
            return [shorten(item) for item in value]
        return float(f"{value:.{digits}g}") if isinstance(value, float) else value

    return shorten(tensor.detach().cpu().tolist())


def _written(numbers: object) -> str:
    """Python's own way of writing them; `inf` and `nan` are names in the script."""
    return repr(numbers)
