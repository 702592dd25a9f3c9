"""What float16 can no longer hold, and what long sequences lose."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from mpsdiag.probes.declaration import Check, Skip, probe

if TYPE_CHECKING:
    from mpsdiag.probes.lab import Lab

LOUD: Final = (40.0, 256.0)
"""Of 64 products of 40 x 40 the sum is above float16's 65,504 before it is scaled, of 256 x 256 after that too."""
LONG: Final = 14_336
ROWS: Final = 64


def _overflow(lab: Lab) -> Iterator[Check]:
    import torch

    lab.require_dtype("float16")
    for head_dim, loud in itertools.product((64, 72), LOUD):
        q, k, v = lab.qkv((1, 2, 16, head_dim), dtype="float16")
        full = torch.full_like(q, loud), torch.full_like(k, loud)
        yield lab.check(f"scores of {loud:.0f} x {loud:.0f}, head dim {head_dim}", *full, v)


def _long_sequence(lab: Lab) -> Iterator[Check]:
    """Judge the last rows of a long sequence; the float64 reference needs those rows only."""
    lab.require_real_mps(f"{LONG} tokens take minutes on a CPU; the error is of the GPU's own arithmetic")
    if lab.training:
        raise Skip("the gradients of so long a sequence need more memory than most machines have")
    for dtype in ("bfloat16", "float16"):
        lab.require_dtype(dtype)
        q, k, v = lab.qkv((1, 1, LONG, 128), dtype=dtype)
        output = lab.attend(q, k, v)[..., -ROWS:, :]
        yardstick = lab.yardstick(q[..., -ROWS:, :], k, v)
        ok, seen, error = yardstick.judge(output)
        yield Check(f"{LONG} tokens, {dtype}", ok, seen, lab.mode, error, yardstick.bound)


PROBES: Final = (
    probe("SDPA021", _overflow),
    probe("SDPA022", _long_sequence),
)
