"""The hand-written kernels: buffers too small (up to 8 queries), NaN swallowed (any number of queries)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from mpsdiag.probes.declaration import Check, Skip, probe
from mpsdiag.probes.known.strides import VECTOR_HEAD_DIMS

if TYPE_CHECKING:
    from mpsdiag.probes.lab import Lab


def _two_pass_buffers(lab: Lab) -> Iterator[Check]:
    for dtype in ("bfloat16", "float16"):
        lab.require_dtype(dtype)
        q, k, v = lab.qkv((1, 32, 1, 128), (1, 32, 1024, 128), dtype=dtype)
        yield lab.check(f"{dtype}, 1 query, 1024 keys", q, k, v)


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


def _far_batch(lab: Lab) -> Iterator[Check]:
    """The second sequence begins 2**31 elements behind the first; of the memory between nothing is touched."""
    import torch

    lab.require_mps("the offsets are those of its kernels")
    if lab.training:
        raise Skip("the gradient of such a key takes 4 GiB more")
    if lab.emulation is None and torch.mps.recommended_max_memory() < FAR_MEMORY:
        raise Skip("needs 16 GiB of GPU memory")
    q, near, v = lab.qkv((2, 1, 16, 64), dtype="float16")
    try:
        memory = torch.empty(FAR + near.numel(), dtype=near.dtype, device=near.device)
    except RuntimeError as problem:
        raise Skip(f"needs 4 GiB of address space: {str(problem).splitlines()[0]}") from problem
    far = memory.as_strided(near.shape, (FAR, *near.stride()[1:])).copy_(near)
    yield lab.check("a batch stride of 2**31 + 128, 16 queries", q, far, v)


def _matrix_hardware(lab: Lab) -> Iterator[Check]:
    """The kernels on Metal Performance Primitives: half types, more than 8 queries, these head dims."""
    lab.require_real_mps("the order of elements is that of Apple's matrix hardware")
    for dtype, head_dim in itertools.product(("bfloat16", "float16"), (64, 96, 128, 256)):
        lab.require_dtype(dtype)
        q, k, v = lab.qkv((1, 2, 100, head_dim), dtype=dtype)
        yield lab.check(f"100 queries, {dtype}, head dim {head_dim}", q, k, v)


def _explains_buffers(at: Mapping[str, Any]) -> bool:
    return bool(
        at["queries"] <= 8
        and at["keys"] >= 1024
        and at["mask"] == "none"
        and at["head_dim"] in VECTOR_HEAD_DIMS
        and at["dtype"] in {"bfloat16", "float16"}
    )


FAR: Final = 2**31 + 128
FAR_MEMORY: Final = 16 * 2**30
PROBES: Final = (
    probe("SDPA004", _two_pass_buffers, explains=_explains_buffers),
    probe("SDPA020", _swallowed_nan),
    probe("SDPA030", _far_batch),
    probe("SDPA031", _matrix_hardware),
)
