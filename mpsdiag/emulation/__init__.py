"""CPU models of the MPS attention kernels of torch 2.0 to 2.15, with their known defects.

Everything here is emulated: it shows what a release is known to do, not what a Mac was seen doing. What computes is
loaded on first use: naming an emulation, and refusing one that there is not, needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mpsdiag.emulation.defects import DEFECTS, Defect, defects_of
from mpsdiag.emulation.machine import EmulatedAbort
from mpsdiag.emulation.releases import RELEASES
from mpsdiag.emulation.selection import Emulation

if TYPE_CHECKING:
    from mpsdiag.emulation.mode import EmulatedMPS, active, emulate_mps, emulated, in_effect, suspended

__all__ = [
    "DEFECTS",
    "RELEASES",
    "Defect",
    "EmulatedAbort",
    "EmulatedMPS",
    "Emulation",
    "active",
    "defects_of",
    "emulate_mps",
    "emulated",
    "in_effect",
    "suspended",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        globals()[name] = value = getattr(import_module("mpsdiag.emulation.mode"), name)
        return value
    raise AttributeError(f"module 'mpsdiag.emulation' has no attribute {name!r}")
