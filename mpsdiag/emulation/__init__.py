"""CPU models of the MPS attention kernels of torch 2.0 to 2.15, with their known defects.

Everything here is emulated: it says what a release is known to do, not what a Mac was seen doing.
"""

from __future__ import annotations

from mpsdiag.emulation.aborts import EmulatedAbort
from mpsdiag.emulation.defects import DEFECTS, Defect, defects_of
from mpsdiag.emulation.mode import EmulatedMPS, active, emulate_mps, emulated, in_effect, suspended
from mpsdiag.emulation.releases import RELEASES
from mpsdiag.emulation.spec import Emulation

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
