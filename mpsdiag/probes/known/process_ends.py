"""Inputs that take the whole process down; they run in a child process, never here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from mpsdiag.emulation.releases import defects_of
from mpsdiag.probes.declaration import Check, Skip, shows

if TYPE_CHECKING:
    from torch import Tensor

    from mpsdiag.probes.lab import Lab

HUGE_LENGTH: Final = 32_800
"""One float32 score matrix of this size is a little over 2**32 bytes."""
HUGE_MEMORY: Final = 24 * 2**30


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

    lab.require_mps("the limit is MPSGraph's; other devices do not have it")
    lab.require_evaluation()
    lab.require_memory(HUGE_MEMORY)
    if lab.emulation is not None and "SDPA019" not in {*lab.emulation.shown} & {
        *defects_of(lab.emulation.release, lab.emulation.macos)
    }:
        raise Skip("no abort; to compute it on a CPU would take minutes and 4 GiB, so nothing is known of its values")
    q = torch.zeros(1, 1, HUGE_LENGTH, 80, device=lab.device)
    output = lab.attend(q, q, q)
    right = not bool(output.any())
    yield Check(f"{HUGE_LENGTH} tokens, float32", right, "right" if right else "wrong values", lab.mode)
