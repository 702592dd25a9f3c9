"""Where a model runs, in words: an emulation is called one."""

from __future__ import annotations

import torch
from torch import nn

from mpsdiag import emulation


def device_of(model: nn.Module) -> torch.device:
    """The device of the first weight; the CPU for a module without weights."""
    weight = next(model.parameters(), None)
    return torch.device("cpu") if weight is None else weight.device


def described(model: nn.Module) -> str:
    """Such as `mps:0`, or `emulated MPS of torch 2.8 on macOS 15`."""
    active, device = emulation.active(), device_of(model)
    return active.describe() if active is not None and device.type == "cpu" else str(device)


def is_plain_cpu(model: nn.Module) -> bool:
    """Whether it runs on the CPU with no emulation in effect."""
    device = device_of(model)
    return device.type == "cpu" and not emulation.in_effect(device)
