"""Defects below attention: products of matrices, which eager attention is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from mpsdiag.probes.declaration import Check, Skip, probe

if TYPE_CHECKING:
    from torch import Tensor

    from mpsdiag.probes.lab import Lab

DEEP: Final = 32_769
"""Beyond 32,767 terms the kernels of the first Apple GPUs add what lies behind the operands (pytorch#195163)."""


def _products(lab: Lab) -> Iterator[Check]:
    if lab.emulation is not None:
        raise Skip("the emulation is of attention; its products are the CPU's")
    for dtype in ("float32", "bfloat16", "float16"):
        lab.require_dtype(dtype)
        q, k, _ = lab.qkv((8, 20, 3, 64), dtype=dtype)
        yield _product(lab, f"permuted views, {dtype}", q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1))
    # What lies behind the operands is not zero, so that adding it shows.
    long = lab.randn(4, 16, DEEP, stream=1)[:2], lab.randn(4, DEEP, 16, stream=2)[:2]
    yield _product(lab, f"{DEEP} terms", *long)


def _product(lab: Lab, name: str, left: Tensor, right: Tensor) -> Check:
    """Judge by the contract's rule, with the CPU's product in the same dtype as the yardstick."""
    import torch

    from mpsdiag.probes.judge import Yardstick
    from mpsdiag.sdpa.bound import largest_error

    with torch.set_grad_enabled(lab.training):
        output = (left @ right).detach().cpu()
    with lab.control():
        a, b = left.cpu(), right.cpu()
        exact = a.double() @ b.double()
        yardstick = Yardstick.of(exact, a.dtype, [largest_error(a.contiguous() @ b.contiguous(), exact)])
        ok, seen, error = yardstick.judge(output)
    return Check(name, ok, seen, lab.mode, error, yardstick.bound)


def _ignored_input(lab: Lab) -> Iterator[Check]:
    import torch

    nothing = torch.full((1, 1, 1), torch.nan, device=lab.device)
    one = torch.ones(1, 1, 1, device=lab.device)
    with torch.set_grad_enabled(lab.training):
        output = torch.baddbmm(nothing, one, one, beta=0).detach().cpu()
    ok = bool((output == 1).all())
    yield Check("NaN input, beta 0", ok, "right" if ok else "NaN", lab.mode)


PROBES: Final = (
    probe("SDPA025", _products),
    probe("SDPA026", _ignored_input),
)
