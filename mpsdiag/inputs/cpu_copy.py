"""A copy of a model on the CPU that takes no second copy on the device while it is made."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn

_WATCHER = "_mpsdiag_watcher"


def copy_to_cpu(model: nn.Module) -> nn.Module:
    """Copy a model to the CPU, in evaluation mode, without gradients.

    Tensors that are on the CPU already are shared, not copied: while the copy lives the original's weights must not
    change in place. `copy.deepcopy` alone would first double the model on the device.

    Args:
        model: The bare model, not a wrapper of it.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers, vars(module)):  # noqa: SLF001 - nn.Module keeps tensors there
            for value in store.values():
                if isinstance(value, torch.Tensor) and id(value) not in memo:
                    memo[id(value)] = _cpu_twin(value)
    twin = copy.deepcopy(model, memo)
    _drop_watchers(twin)
    return twin.eval()


def _cpu_twin(value: torch.Tensor) -> torch.Tensor:
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
