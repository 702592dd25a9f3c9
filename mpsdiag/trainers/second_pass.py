"""Evaluates a batch a second time, on the CPU, with copies of the Trainer's models, but counts it once.

A Trainer may hold more than one model (a reference model, a loss that keeps the model it trains), and `compute_loss`
may keep its own metrics: the second pass replaces the first.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Any, Final

from torch import Tensor, nn

from mpsdiag.inputs.modules import copy_to_cpu

_DEEPEST: Final = 4
_LARGEST: Final = 1000
"""Dictionaries with more entries hold data, not counts."""


class CpuModels:
    """Copies of a Trainer's models on the CPU, made at the first use; they live as long as this object."""

    def __init__(self) -> None:
        self._twins: dict[int, nn.Module] | None = None

    @contextmanager
    def taking_over(self, trainer: Any) -> Iterator[nn.Module]:
        """Put the copies into the Trainer until the block ends, and give that of its model."""
        held = {name: value for name, value in vars(trainer).items() if _modules(value)}
        if self._twins is None:
            # `model_wrapped` may be a wrapper of the model for another device; the bare model stands in for it.
            originals = [m for name, value in held.items() if name != "model_wrapped" for m in _modules(value)]
            copies: Any = copy_to_cpu(nn.ModuleList(originals))
            self._twins = {id(old): new for old, new in zip(originals, copies, strict=True)}
        twins = self._twins
        model = twins[id(trainer.model)]
        try:
            vars(trainer).update({name: _swapped(value, twins, model) for name, value in held.items()})
            yield model
        finally:
            vars(trainer).update(held)


def _modules(value: Any) -> list[nn.Module]:
    """The modules of an attribute: the attribute itself, or the items of a short list or of a dictionary."""
    if isinstance(value, nn.Module):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [item for item in items if isinstance(item, nn.Module)] if len(items) <= _LARGEST else []


def _swapped(value: Any, twins: Mapping[int, nn.Module], model: nn.Module) -> Any:
    if isinstance(value, nn.Module):
        return twins.get(id(value), model)
    if isinstance(value, dict):
        return type(value)((name, twins.get(id(item), item)) for name, item in value.items())
    return type(value)(twins.get(id(item), item) for item in value)


def remember_counts(trainer: Any) -> Callable[[], None]:
    """Remember the numbers, lists and dictionaries of a Trainer; calling the result undoes what was added to them.

    Lists are cut to their old length; replaced items stay.
    """
    undo = list(_undoing(vars(trainer), 0))

    def undo_all() -> None:
        for step in undo:
            step()

    return undo_all


def _undoing(holder: dict[Any, Any], depth: int) -> Iterator[Callable[[], None]]:
    """A function that restores each entry of a dictionary to its current value."""
    for name, value in holder.items():
        if isinstance(value, list):
            yield partial(value.__delitem__, slice(len(value), None))
        elif isinstance(value, dict) and depth < _DEEPEST and len(value) <= _LARGEST:
            yield partial(_drop_all_but, value, set(value))
            yield from _undoing(value, depth + 1)
        elif isinstance(value, deque | int | float):
            yield partial(holder.__setitem__, name, copy(value))
        elif isinstance(value, Tensor) and value.numel() == 1:
            yield partial(holder.__setitem__, name, value.detach().clone())


def _drop_all_but(value: dict[Any, Any], names: set[Any]) -> None:
    for added in set(value) - names:
        del value[added]
