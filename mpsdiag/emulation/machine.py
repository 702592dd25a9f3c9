"""The emulated machine: what a call needs to know of it, and what the machine remembers between calls."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mpsdiag.emulation.releases import TABLE

if TYPE_CHECKING:
    from mpsdiag.emulation.refusals import OnAbort
    from mpsdiag.emulation.releases import Release
    from mpsdiag.emulation.selection import Emulation


@dataclass
class Machine:
    """An Apple device with a torch release, as far as attention can see it.

    `garbage` is the source of what lies in memory that was never written: seeded, so runs repeat and calls differ.
    `gaps` are the numbers between sums and maxima in the calls of SDPA004: the allocator puts the maxima right behind,
    then elsewhere. `graphs` is the cache of compiled graphs: what is kept of the first call of a key.
    """

    release: Release
    macos: int
    defects: frozenset[str]
    on_abort: OnAbort
    garbage: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0x6D7073))
    gaps: Iterator[int] = field(default_factory=lambda: itertools.cycle(range(16)))
    graphs: dict[tuple[object, ...], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, emulation: Emulation, on_abort: OnAbort) -> Machine:
        """The machine that an emulation asks for, fresh."""
        return cls(TABLE[emulation.release], emulation.macos, frozenset(emulation.shown), on_abort)

    def has(self, defect: str) -> bool:
        """Whether it has a defect, by id."""
        return defect in self.defects
