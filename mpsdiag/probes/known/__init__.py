"""The catalogue: every known defect of attention on MPS, in the order of its id."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from mpsdiag.emulation.defects import KNOWN
from mpsdiag.errors import one_of
from mpsdiag.probes.declaration import Probe, probe
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
)
_RUN: Final = {one.id: one for file in _FILES for one in file.PROBES}

CATALOGUE: Final[Mapping[str, Probe]] = MappingProxyType(
    {name: _RUN.get(name) or probe(name) for name in KNOWN}
)


def find(probe_id: str) -> Probe:
    """The probe of that id, in any case of its letters."""
    return CATALOGUE[one_of("probe", probe_id.upper(), CATALOGUE)]
