"""Memory that grows with every call, and score matrices too large to be addressed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from mpsdiag.probes.declaration import Check, Skip, probe

if TYPE_CHECKING:
    from torch import Tensor

    from mpsdiag.probes.lab import Lab

CALLS: Final = 32
LEAK_SHAPE: Final = (4, 8, 1024, 512)
SMALL_LEAK_SHAPE: Final = (1, 8, 256, 64)
"""The thread's own shape on an Apple GPU, a small one elsewhere, where nobody has seen such a leak."""
HUGE: Final = (1, 24, 13_670, 64)
HUGE_BYTES: Final = 64 * 2**30
ROWS: Final = 16


def grown(call: Callable[[int], Tensor], device: str) -> int:
    """Measure by how many bytes this process and the device grew over `CALLS` calls, after as many to warm up.

    To be trusted in a young process only: in an old one, freed memory takes in what leaks, and nothing grows.
    """
    import gc

    import psutil

    from mpsdiag.device import current_memory, synchronize

    def used() -> int:
        gc.collect()
        synchronize(device)
        return int(psutil.Process().memory_info().rss) + (current_memory(device) or 0)

    for number in range(CALLS):
        call(number)
    before = used()
    for number in range(CALLS, 2 * CALLS):
        call(number)
    return used() - before


def _leak(lab: Lab) -> Iterator[Check]:
    """Losing one output per call would be a leak; half of that is called one."""
    if lab.emulation is not None:
        raise Skip("the emulation computes values; it has no allocator that could leak")
    q, k, v = lab.qkv(LEAK_SHAPE if lab.on_mps else SMALL_LEAK_SHAPE)
    more = grown(lambda _: lab.attend(q, k, v), lab.device)
    allowed = CALLS * q.numel() * q.element_size() // 2
    yield _grew(lab, f"{CALLS} equal calls, float32", more, allowed)


def _varying_lengths(lab: Lab) -> Iterator[Check]:
    """One length over and over against a new length every time: the difference is what the cache keeps."""
    lab.require_real_mps("the cache that grows is MPSGraph's; other devices have none")

    def at(length: int) -> Tensor:
        return lab.attend(*lab.qkv((1, 8, length, 64)))

    same = grown(lambda _: at(128), lab.device)
    new = grown(lambda number: at(129 + number), lab.device)
    yield _grew(lab, f"{CALLS} new lengths against one", new - same, CALLS * 2**19)


def _grew(lab: Lab, name: str, more: int, allowed: int) -> Check:
    ok = more <= allowed
    seen = "steady" if ok else f"grew by {more / 2**20:.0f} MiB"
    return Check(name, ok, seen, lab.mode, float(more), float(allowed))


def _huge_scores(lab: Lab) -> Iterator[Check]:
    """Judge a few rows of the last head: the first whose scores start beyond 2**32."""
    import torch

    lab.require_real_mps(
        "the addresses that overflow are MPSGraph's, and the CPU would need minutes and 18 GB"
    )
    if lab.training:
        raise Skip("the gradients of so long a sequence need more memory than most machines have")
    available = torch.mps.recommended_max_memory()
    if available < HUGE_BYTES:
        raise Skip(f"needs 64 GiB of GPU memory, this machine offers {available / 2**30:.0f}")
    q, k, v = lab.qkv(HUGE)
    output = lab.attend(q, k, v)[:, -1:, -ROWS:, :]
    yardstick = lab.yardstick(q[:, -1:, -ROWS:, :], k[:, -1:], v[:, -1:])
    ok, seen, error = yardstick.judge(output)
    yield Check("last of 24 heads, 13670 tokens", ok, seen, lab.mode, error, yardstick.bound)


PROBES: Final = (
    probe("SDPA012", _leak),
    probe("SDPA013", _varying_lengths),
    probe("SDPA018", _huge_scores),
)
