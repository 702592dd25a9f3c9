"""The emulated machine: what a call needs to know of it, and what the machine remembers between calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mpsdiag.emulation.releases import TABLE

if TYPE_CHECKING:
    from mpsdiag.emulation.refusals import OnAbort
    from mpsdiag.emulation.releases import Release
    from mpsdiag.emulation.selection import Emulation


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0x6D7073)  # one that nobody draws inputs from


@dataclass
class Machine:
    """An Apple device with a torch release, as far as attention can see it.

    `garbage` is the source of what lies in memory that nobody wrote: seeded, so runs repeat and calls differ.
    `narrow_calls` counts the calls of SDPA004, which differ in where the allocator puts their buffers.
    `graphs` is the cache of compiled graphs: what is kept of the first call for later ones of the same key.
    """

    release: Release
    macos: int
    defects: frozenset[str]
    on_abort: OnAbort
    garbage: torch.Generator = field(default_factory=_seeded)
    narrow_calls: int = 0
    graphs: dict[tuple[object, ...], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, emulation: Emulation, on_abort: OnAbort) -> Machine:
        """The machine that an emulation asks for, fresh."""
        return cls(TABLE[emulation.release], emulation.macos, frozenset(emulation.shown), on_abort)

    def has(self, defect: str) -> bool:
        """Whether it has a defect, by id."""
        return defect in self.defects

    def next_gap(self) -> int:
        """How many numbers behind the sums the maxima lie in the next call of SDPA004: right behind, then others."""
        self.narrow_calls += 1
        return (self.narrow_calls - 1) % 16
