"""The catalogue: every known defect of attention on MPS, in the order of its id."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from mpsdiag.errors import one_of
from mpsdiag.probes.declaration import Probe
from mpsdiag.probes.known import (
    caching,
    causal,
    dropout_and_width,
    kernels,
    masked_rows,
    matmul,
    numbers,
    process_ends,
    sizes,
    strides,
    unreleased,
)

_FILES: Final = (
    caching,
    causal,
    dropout_and_width,
    kernels,
    masked_rows,
    matmul,
    numbers,
    process_ends,
    sizes,
    strides,
    unreleased,
)
_ALL: Final[tuple[Probe, ...]] = tuple(probe for file in _FILES for probe in file.PROBES)

CATALOGUE: Final[Mapping[str, Probe]] = MappingProxyType(
    {probe.id: probe for probe in sorted(_ALL, key=lambda probe: probe.id)}
)


def find(probe_id: str) -> Probe:
    """Return the probe of that id, in any case of its letters.

    Raises:
        BadInput: There is none; the sentence suggests the nearest.
    """
    return CATALOGUE[one_of("probe", probe_id.upper(), CATALOGUE)]
