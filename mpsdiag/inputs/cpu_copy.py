"""The one way to the CPU: nested tensors, and models, of which no second copy is made on the device."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import nn

_WATCHER = "_mpsdiag_watcher"


def copy_to_cpu(model: nn.Module) -> nn.Module:
    """Copy a model to the CPU, in evaluation mode, without gradients.

    Tensors that are on the CPU already are shared, not copied: while the copy lives the original's weights must not
    change in place. `copy.deepcopy` alone would first double the model on the device.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers, vars(module)):  # noqa: SLF001 - nn.Module keeps tensors there
            for value in store.values():
                if isinstance(value, Tensor) and id(value) not in memo:
                    memo[id(value)] = _cpu_twin(value)
    twin = copy.deepcopy(model, memo)
    _drop_watchers(twin)
    return twin.eval()


def to_float64(model: nn.Module) -> nn.Module:
    """Turn a copy into float64, its experts computed one by one: the grouped product has no float64."""
    switch: Any = getattr(model, "set_experts_implementation", None)
    if switch is not None:
        switch("eager")
    return model.double()


def _cpu_twin(value: Tensor) -> Tensor:
    moved = value.detach().to("cpu")
    if isinstance(value, torch.nn.Parameter):
        return torch.nn.Parameter(moved, requires_grad=False)
    return moved


def mark_watcher(hook: Any) -> Any:
    """Mark a hook that only counts, so that a CPU copy of the model is left without it."""
    setattr(hook, _WATCHER, True)
    return hook


def _drop_watchers(model: nn.Module) -> None:
    for module in model.modules():
        hooks = module._forward_hooks  # noqa: SLF001 - there is no public list of hooks
        for key in [key for key, hook in hooks.items() if getattr(hook, _WATCHER, False)]:
            hooks.pop(key)
            module._forward_hooks_with_kwargs.pop(key, None)  # noqa: SLF001 - likewise


def over_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor in nested mappings, lists and tuples; model outputs stay model outputs."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        changed = {key: over_tensors(item, change) for key, item in value.items()}
        # A model output is a dataclass and a dictionary; a BatchEncoding is neither, but takes a dictionary.
        rebuild: Any = type(value)
        return rebuild(**changed) if dataclasses.is_dataclass(value) else rebuild(changed)
    if isinstance(value, list | tuple):
        items = [over_tensors(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def move(value: Any, device: torch.device | str) -> Any:
    """Move every tensor in a nested value to a device."""
    return over_tensors(value, lambda tensor: tensor.to(device))


def to_cpu(value: Any) -> Any:
    """Move every tensor in a nested value to the CPU."""
    return move(value, "cpu")
