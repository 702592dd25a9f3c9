"""Memory that grows with every call, score matrices too large, numbers too large for float16, long sequences."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from mpsdiag.probes.declaration import Check, Skip, shows

if TYPE_CHECKING:
    from torch import Tensor

    from mpsdiag.probes.lab import Lab

CALLS: Final = 32
LEAK_SHAPE: Final = (4, 8, 1024, 512)
SMALL_LEAK_SHAPE: Final = (1, 8, 256, 64)
"""The shape of the report on an Apple GPU, a small one elsewhere, where no such leak has been seen."""
HUGE: Final = (1, 24, 13_670, 64)
HUGE_BYTES: Final = 64 * 2**30
ROWS: Final = 16
LOUD: Final = (40.0, 256.0)
"""Of 64 products of 40 x 40 the sum is above float16's 65,504 before it is scaled, of 256 x 256 after that too."""
LONG: Final = 14_336
LAST_ROWS: Final = 64


def grown(call: Callable[[int], Tensor], device: str) -> int:
    """Measure how many bytes this process and the device grow over `CALLS` calls, after as many warm-up calls.

    The result is reliable only in a young process: in an old one, leaks go into freed memory, and nothing grows.
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


@shows("SDPA012")
def _leak(lab: Lab) -> Iterator[Check]:
    """Losing one output per call would be a leak; half of that counts as one."""
    if lab.emulation is not None:
        raise Skip("the emulation computes values; it has no allocator that could leak")
    q, k, v = lab.qkv(LEAK_SHAPE if lab.on_mps else SMALL_LEAK_SHAPE)
    more = grown(lambda _: lab.attend(q, k, v), lab.device)
    allowed = CALLS * q.numel() * q.element_size() // 2
    yield _grew(lab, f"{CALLS} equal calls, float32", more, allowed)


@shows("SDPA013")
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


@shows("SDPA018")
def _huge_scores(lab: Lab) -> Iterator[Check]:
    """Judge a few rows of the last head: the first whose scores start beyond 2**32."""
    lab.require_real_mps("the addresses that overflow are MPSGraph's, and the CPU would need minutes and 18 GB")
    lab.require_evaluation()
    lab.require_memory(HUGE_BYTES)
    q, k, v = lab.qkv(HUGE)
    output = lab.attend(q, k, v)[:, -1:, -ROWS:, :]
    yardstick = lab.yardstick(q[:, -1:, -ROWS:, :], k[:, -1:], v[:, -1:])
    yield lab.judged("last of 24 heads, 13670 tokens", output, yardstick)


@shows("SDPA021")
def _overflow(lab: Lab) -> Iterator[Check]:
    import torch

    lab.require_dtype("float16")
    for head_dim, loud in itertools.product((64, 72), LOUD):
        q, k, v = lab.qkv((1, 2, 16, head_dim), dtype="float16")
        full = torch.full_like(q, loud), torch.full_like(k, loud)
        yield lab.check(f"scores of {loud:.0f} x {loud:.0f}, head dim {head_dim}", *full, v)


@shows("SDPA022")
def _long_sequence(lab: Lab) -> Iterator[Check]:
    """Judge the last rows of a long sequence; the float64 reference needs those rows only."""
    lab.require_real_mps(f"{LONG} tokens take minutes on a CPU; the error lies in the GPU's own arithmetic")
    lab.require_evaluation()
    for dtype in lab.each_dtype("bfloat16", "float16"):
        q, k, v = lab.qkv((1, 1, LONG, 128), dtype=dtype)
        output = lab.attend(q, k, v)[..., -LAST_ROWS:, :]
        yield lab.judged(f"{LONG} tokens, {dtype}", output, lab.yardstick(q[..., -LAST_ROWS:, :], k, v))
