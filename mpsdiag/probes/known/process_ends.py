"""Inputs that take the whole process down: run in a child, never here."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from mpsdiag.probes.declaration import Check, Skip, shows

if TYPE_CHECKING:
    from torch import Tensor

    from mpsdiag.probes.lab import Lab

HUGE_LENGTH: Final = 32_800
"""One float32 score matrix of this size is a little over 2**32 bytes."""
HUGE_MEMORY: Final = 24 * 2**30
ENOUGH_SECONDS: Final = 1.0
ENOUGH_BYTES: Final = 2 * 2**30
"""What an emulated run of it may take: an abort comes before the first score is computed."""


@shows("SDPA010")
def _grouped_heads(lab: Lab) -> Iterator[Check]:
    if lab.release < (2, 5):
        raise Skip("torch below 2.5 has no enable_gqa")
    q, k, v = lab.qkv((1, 4, 8, 64), (1, 2, 8, 64))
    yield lab.check("4 query heads, 2 key heads", q, k, v, enable_gqa=True)


@shows("SDPA011")
def _other_ranks(lab: Lab) -> Iterator[Check]:
    import torch

    q, k, v = lab.qkv((16, 16, 80))
    yield _tolerant(lab, "3 dimensions", q, k, v, torch.ones(1, 16, 16, device=q.device))
    q, k, v = lab.qkv((2, 3, 4, 7, 32))
    yield _tolerant(lab, "5 dimensions", q, k, v, None)


def _tolerant(lab: Lab, name: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Check:
    """Judge a call that other devices accept; here raising is a failure of the call, not of the probe."""
    from mpsdiag.emulation.selection import EmulatedAbort

    try:
        return lab.check(name, q, k, v, mask)
    except EmulatedAbort:
        raise
    except (RuntimeError, IndexError, ValueError) as problem:
        line = str(problem).splitlines()[0][:120]
        return Check(name, ok=False, seen=f"raises: {line}", mode=lab.mode)


@shows("SDPA019")
def _huge_scores(lab: Lab) -> Iterator[Check]:
    import torch

    lab.require_mps("the limit is MPSGraph's; other devices have none such")
    lab.require_evaluation()
    lab.require_memory(HUGE_MEMORY)
    q = torch.zeros(1, 1, HUGE_LENGTH, 80, device=lab.device)
    with spared_machine() if lab.emulation else nullcontext():
        output = lab.attend(q, q, q)
    right = not bool(output.any())
    yield Check(f"{HUGE_LENGTH} tokens, float32", right, "right" if right else "wrong values", lab.mode)


@contextmanager
def spared_machine() -> Iterator[None]:
    """Let an emulation begin, so that it can abort, and stop it before it takes minutes and fills the memory.

    Raises Skip where no abort came.
    """
    import psutil
    from torch.utils._python_dispatch import TorchDispatchMode

    from mpsdiag.emulation.selection import EmulatedAbort

    without_abort = "no abort; to compute it on a CPU would take minutes and 4 GiB, so nothing is known of its values"
    end = time.monotonic() + ENOUGH_SECONDS

    class Deadline(TorchDispatchMode):  # type: ignore[no-untyped-call]  # in torch
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if time.monotonic() > end:
                raise Skip(without_abort)
            return func(*args, **(kwargs or {}))

    limits = resource.getrlimit(resource.RLIMIT_AS)
    room = psutil.Process().memory_info().vms + ENOUGH_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (room if limits[1] < 0 else min(room, limits[1]), limits[1]))
    try:
        with Deadline():  # type: ignore[no-untyped-call]  # in torch
            yield
    except EmulatedAbort:
        raise
    except (RuntimeError, MemoryError) as problem:
        if "memory" not in str(problem).lower():
            raise
        raise Skip(without_abort) from problem
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
