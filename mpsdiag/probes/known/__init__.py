"""The catalogue: every known defect of attention on MPS, ordered by id."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from mpsdiag.errors import one_of
from mpsdiag.probes.declaration import PROBES, Probe
from mpsdiag.probes.known import arguments, fully_masked, kernels, process_ends, sizes, strides  # noqa: F401 - each adds its triggers to the probes

CATALOGUE: Final[Mapping[str, Probe]] = MappingProxyType(PROBES)


def find(probe_id: str) -> Probe:
    """The probe with this id, in upper or lower case."""
    return CATALOGUE[one_of("probe", probe_id.upper(), CATALOGUE)]
