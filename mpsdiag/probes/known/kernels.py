"""Kernels: buffers too small, NaN swallowed, offsets too short; and the matrix products below attention."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from mpsdiag.probes.declaration import Check, Skip, shows
from mpsdiag.probes.known.strides import in_vector_kernel

if TYPE_CHECKING:
    from torch import Tensor

    from mpsdiag.probes.lab import Lab

FAR: Final = 2**31 + 128
FAR_MEMORY: Final = 16 * 2**30
DEEP: Final = 32_769
"""Beyond 32,767 terms the kernels of the first Apple GPUs add what lies behind the operands (pytorch#195163)."""


def _explains_buffers(at: Mapping[str, Any]) -> bool:
    half, long = at["dtype"] in {"bfloat16", "float16"}, at["keys"] >= 1024
    return half and long and in_vector_kernel(at)


@shows("SDPA004", explains=_explains_buffers)
def _two_pass_buffers(lab: Lab) -> Iterator[Check]:
    for dtype in lab.each_dtype("bfloat16", "float16"):
        q, k, v = lab.qkv((1, 32, 1, 128), (1, 32, 1024, 128), dtype=dtype)
        yield lab.check(f"{dtype}, 1 query, 1024 keys", q, k, v)


@shows("SDPA020")
def _swallowed_nan(lab: Lab) -> Iterator[Check]:
    """A NaN in the query or in all keys must come out: attention that hides it hides a broken model."""
    import torch

    for length, poisoned in itertools.product((4, 16), ("one query", "every key of a head")):
        q, k, v = lab.qkv((1, 2, length, 64), (1, 2, 16, 64))
        with torch.no_grad():
            (q[0, 0, :1] if poisoned == "one query" else k[0, 0])[:] = torch.nan
        output = lab.attend(q, k, v)
        with lab.control():
            spoilt = output[0, 0, :1] if poisoned == "one query" else output[0, 0]
            shown = bool(spoilt.isnan().all())
            others = bool(torch.isfinite(output[0, 1]).all())
            others &= poisoned != "one query" or bool(torch.isfinite(output[0, 0, 1:]).all())
        seen = "NaN kept" if shown else ("zeros" if not bool(spoilt.any()) else "finite values")
        yield Check(f"NaN in {poisoned}, {length} queries", shown and others, seen, lab.mode)


@shows("SDPA030")
def _far_batch(lab: Lab) -> Iterator[Check]:
    """The second sequence begins 2**31 elements behind the first; the memory in between is not touched."""
    import torch

    lab.require_mps("the offsets are those of its kernels")
    if lab.training:
        raise Skip("the gradient of such a key takes 4 GiB more")
    lab.require_memory(FAR_MEMORY)
    q, near, v = lab.qkv((2, 1, 16, 64), dtype="float16")
    try:
        memory = torch.empty(FAR + near.numel(), dtype=near.dtype, device=near.device)
    except RuntimeError as problem:
        raise Skip(f"needs 4 GiB of address space: {str(problem).splitlines()[0]}") from problem
    far = memory.as_strided(near.shape, (FAR, *near.stride()[1:])).copy_(near)
    yield lab.check("a batch stride of 2**31 + 128, 16 queries", q, far, v)


@shows("SDPA031")
def _matrix_hardware(lab: Lab) -> Iterator[Check]:
    """The kernels on Metal Performance Primitives: half types, more than 8 queries, these head dims."""
    lab.require_real_mps("the order of elements is that of Apple's matrix hardware")
    for dtype in lab.each_dtype("bfloat16", "float16"):
        for head_dim in (64, 96, 128, 256):
            q, k, v = lab.qkv((1, 2, 100, head_dim), dtype=dtype)
            yield lab.check(f"100 queries, {dtype}, head dim {head_dim}", q, k, v)


@shows("SDPA025")
def _products(lab: Lab) -> Iterator[Check]:
    if lab.emulation is not None:
        raise Skip("the emulation models attention only; matrix products are the CPU's")
    for dtype in lab.each_dtype("float32", "bfloat16", "float16"):
        q, k, _ = lab.qkv((8, 20, 3, 64), dtype=dtype)
        yield _product(lab, f"permuted views, {dtype}", q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1))
    # The memory behind the operands is not zero, so that adding it shows.
    long = lab.randn(4, 16, DEEP, stream=1)[:2], lab.randn(4, DEEP, 16, stream=2)[:2]
    yield _product(lab, f"{DEEP} terms", *long)


def _product(lab: Lab, name: str, left: Tensor, right: Tensor) -> Check:
    """Judge by the contract's rule, with the CPU's product in the same dtype as the yardstick."""
    import torch

    from mpsdiag.sdpa.float64 import Yardstick, largest_error

    with torch.set_grad_enabled(lab.training):
        output = (left @ right).detach().cpu()
    with lab.control():
        a, b = left.cpu(), right.cpu()
        exact = a.double() @ b.double()
        yardstick = Yardstick.of(exact, a.dtype, [largest_error(a.contiguous() @ b.contiguous(), exact)])
    return lab.judged(name, output, yardstick)


@shows("SDPA026")
def _ignored_input(lab: Lab) -> Iterator[Check]:
    import torch

    nothing = torch.full((1, 1, 1), torch.nan, device=lab.device)
    one = torch.ones(1, 1, 1, device=lab.device)
    with torch.set_grad_enabled(lab.training):
        output = torch.baddbmm(nothing, one, one, beta=0).detach().cpu()
    ok = bool((output == 1).all())
    yield Check("NaN input, beta 0", ok, "right" if ok else "NaN", lab.mode)
