"""The cache of compiled graphs: what its key forgets, a later call gets from an earlier one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from mpsdiag.probes.declaration import Check, probe

if TYPE_CHECKING:
    from mpsdiag.probes.lab import Lab

# Shapes nobody else uses: the cache lives as long as the process, and the first call of a shape is what counts.
# A head dim of 40 keeps every release on the graph path.
SCALE_SHAPE: Final = (1, 2, 19, 40)
MASK_SHAPE: Final = (1, 2, 21, 40)


def _scale(lab: Lab) -> Iterator[Check]:
    q, k, v = lab.qkv(SCALE_SHAPE)
    yield lab.check("first call, scale 1.0", q, k, v, scale=1.0)
    yield lab.check("second call, scale 0.1", q, k, v, scale=0.1)


def _mask_shape_and_dtype(lab: Lab) -> Iterator[Check]:
    length = MASK_SHAPE[2]
    q, k, v = lab.qkv(MASK_SHAPE)
    row = lab.randn(1, 1, 1, length, stream=4)
    yield lab.check("first call, mask of one row", q, k, v, row)
    yield lab.check("second call, mask of all rows", q, k, v, lab.randn(1, 1, length, length, stream=5))
    lab.require_dtype("float16")
    q, k, v = lab.qkv(MASK_SHAPE, dtype="float16")
    wide = lab.randn(1, 1, length, length, stream=6)
    yield lab.check("float16, first call, float32 mask", q, k, v, wide)
    narrow = lab.randn(1, 1, length, length, dtype="float16", stream=7)
    yield lab.check("float16, second call, float16 mask", q, k, v, narrow)


PROBES: Final = (
    probe("SDPA015", _scale),
    probe("SDPA016", _mask_shape_and_dtype),
)
