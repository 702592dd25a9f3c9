"""The catalogue: every known defect of attention on MPS, in the order of its id."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from mpsdiag.errors import one_of
from mpsdiag.probes import (
    aborts,
    arguments,
    caching,
    causal,
    dead_rows,
    matmul,
    memory,
    numbers,
    strides,
    unreleased,
    vector,
)
from mpsdiag.probes.declaration import Probe

_ROOMS: Final = (
    aborts,
    arguments,
    caching,
    causal,
    dead_rows,
    matmul,
    memory,
    numbers,
    strides,
    unreleased,
    vector,
)
_ALL: Final[tuple[Probe, ...]] = tuple(probe for room in _ROOMS for probe in room.PROBES)

CATALOGUE: Final[Mapping[str, Probe]] = MappingProxyType(
    {probe.id: probe for probe in sorted(_ALL, key=lambda probe: probe.id)}
)


def find(probe_id: str) -> Probe:
    """Return the probe of that id, in any case of its letters.

    Raises:
        BadInput: There is none; the sentence suggests the nearest.
    """
    return CATALOGUE[one_of("probe", probe_id.upper(), CATALOGUE)]
