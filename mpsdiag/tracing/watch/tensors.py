"""Facts about tensors for a trace: their non-finite values, their finite range, their bad rows."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpsdiag.inputs.modules import logits_of, loss_of, mapped

LISTED = 16
"""At most this many sequences, heads, positions or weights are listed one by one."""


@dataclass(frozen=True)
class Impurity:
    """The non-finite values of a tensor."""

    nan: bool = False
    positive: bool = False
    negative: bool = False

    def __bool__(self) -> bool:
        return self.nan or self.infinite

    @property
    def infinite(self) -> bool:
        """Whether it contains plus or minus infinity."""
        return self.positive or self.negative


PURE = Impurity()


def unseen() -> Any:
    """Keep our own operations on tensors out of the watch."""
    return torch._C.DisableTorchFunction()  # noqa: SLF001 - no public name for it


def impurity(tensor: Tensor) -> Impurity:
    """Inspect a dense tensor of any dtype. Waits for the device; tensors that are not floating count as clean."""
    if tensor.is_complex() and tensor.layout == torch.strided and not tensor.is_meta:
        tensor = torch.view_as_real(tensor.detach().resolve_conj())
    if not is_judged(tensor):
        return PURE
    values = tensor.detach()
    if bool(torch.isfinite(values).all()):
        return PURE
    return Impurity(
        nan=bool(torch.isnan(values).any()),
        positive=bool(torch.isposinf(values).any()),
        negative=bool(torch.isneginf(values).any()),
    )


def is_judged(tensor: Tensor) -> bool:
    """Whether a tensor is dense, has values and a dtype with a maximum and isfinite: eight-bit floats have neither."""
    plain = tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_meta
    return plain and tensor.is_floating_point() and tensor.dtype.itemsize > 1 and tensor.numel() > 0


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested tuples, lists and mappings, with a name made from its path."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from tensors_in(item, f"{name}[{index}]" if name else str(index))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_in(item, f"{name}.{key}" if name else str(key))


def judged_in(output: Any) -> Iterator[tuple[str, Tensor]]:
    """The part of a model's output that must be finite: loss and logits, or all tensors if no logits are named."""
    logits = None if isinstance(output, tuple | list) else logits_of(output)
    if logits is None and isinstance(output, tuple | list | Mapping):
        return tensors_in(output)
    named = (("loss", loss_of(output)), ("logits", logits))
    return ((name, tensor) for name, tensor in named if tensor is not None)


def fresh(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a batch for one forward, which may write into it or append to a cache in it."""
    return {name: mapped(value, _copy) for name, value in batch.items()}


def flat(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch with copies of its nested mappings, for a model that takes it as a single argument."""
    inner = {name: item for value in batch.values() if isinstance(value, Mapping) for name, item in value.items()}
    return {**inner, **batch}


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    return copied(value, lambda tensor: tensor.detach().clone())


def copied(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of an object such as a cache, with each tensor changed: those with a history cannot be copied."""
    memo: dict[int, Any] = {}
    _fill(memo, value, change)
    return copy.deepcopy(value, memo)


def _fill(memo: dict[int, Any], value: Any, change: Callable[[Tensor], Tensor]) -> None:
    parts = vars(value) if hasattr(value, "__dict__") else value
    for _, tensor in tensors_in(parts):
        memo[id(tensor)] = change(tensor)
    inner = parts.values() if hasattr(value, "__dict__") else parts if isinstance(parts, list | tuple) else ()
    for item in inner:
        nested = isinstance(item, list | tuple) or hasattr(item, "__dict__")
        if nested and not isinstance(item, Tensor | type):
            _fill(memo, item, change)


def facts(tensor: Tensor, name: str = "") -> dict[str, Any]:
    """Shape, dtype, finite range and counts of non-finite values, for the evidence."""
    values = tensor.detach()
    found: dict[str, Any] = {
        "name": name,
        "shape": list(values.shape),
        "dtype": str(values.dtype).removeprefix("torch."),
    }
    if values.numel() == 0 or values.is_complex():
        return found
    if values.dtype == torch.bool:
        return {**found, "true": int(values.sum()), "of": values.numel()}
    if not values.is_floating_point():
        return {**found, "min": int(values.min()), "max": int(values.max())}
    finite = values[torch.isfinite(values)]
    if finite.numel():
        found |= {"min": float(finite.min()), "max": float(finite.max())}
    bad = {"nan": torch.isnan(values), "inf": torch.isposinf(values), "-inf": torch.isneginf(values)}
    return found | {key: count for key, where in bad.items() if (count := int(where.sum()))}


def largest(tensor: Tensor) -> float:
    """The largest finite magnitude in a tensor; 0.0 if there is none."""
    values = tensor.detach()
    finite = values[torch.isfinite(values)].abs() if values.is_floating_point() else values.flatten()[:0]
    return float(finite.max()) if finite.numel() else 0.0


def bad_rows(tensor: Tensor) -> dict[str, Any]:
    """The non-finite rows of an output, in terms of the dimensions of a language model."""
    bad = ~torch.isfinite(tensor.detach())
    counts: dict[str, Any] = {"values": int(bad.sum()), "of": tensor.numel()}
    names = {3: ("sequences", "positions"), 4: ("sequences", "heads", "positions")}.get(tensor.dim(), ())
    if names:
        rows = bad.any(-1)
        counts["rows"] = int(rows.sum())
        counts |= {name: listed(rows.movedim(d, 0).flatten(1).any(1)) for d, name in enumerate(names)}
    return counts


def listed(flags: Tensor) -> str:
    """Indices of the true flags, with runs written as `3-7`; shortened, with the number of the rest."""
    indices: list[int] = flags.nonzero().flatten().tolist()
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    words = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    more = f" and {len(words) - LISTED} more" if len(words) > LISTED else ""
    return ", ".join(words[:LISTED]) + more
