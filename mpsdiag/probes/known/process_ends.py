"""Inputs that take the whole process down: run in a child, never here."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from mpsdiag.probes.declaration import Check, Probe, Remedy, Skip, span

if TYPE_CHECKING:
    from torch import Tensor

    from mpsdiag.probes.lab import Lab

HUGE_LENGTH: Final = 32_800
"""One float32 score matrix of this size is a little over 2**32 bytes."""
HUGE_MEMORY: Final = 24 * 2**30
ENOUGH_SECONDS: Final = 1.0
ENOUGH_BYTES: Final = 2 * 2**30
"""What an emulated run of it may take: an abort comes before the first score is computed."""


def _grouped_heads(lab: Lab) -> Iterator[Check]:
    if lab.release < (2, 5):
        raise Skip("torch below 2.5 has no enable_gqa")
    q, k, v = lab.qkv((1, 4, 8, 64), (1, 2, 8, 64))
    yield lab.check("4 query heads, 2 key heads", q, k, v, enable_gqa=True)


def _other_ranks(lab: Lab) -> Iterator[Check]:
    import torch

    q, k, v = lab.qkv((16, 16, 80))
    yield _tolerant(lab, "3 dimensions", q, k, v, torch.ones(1, 16, 16, device=q.device))
    q, k, v = lab.qkv((2, 3, 4, 7, 32))
    yield _tolerant(lab, "5 dimensions", q, k, v, None)


def _tolerant(lab: Lab, name: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Check:
    """Judge a call that other devices accept; here raising is a failure of the call, not of the probe."""
    from mpsdiag.emulation import EmulatedAbort

    try:
        return lab.check(name, q, k, v, mask)
    except EmulatedAbort:
        raise
    except (RuntimeError, IndexError, ValueError) as problem:
        line = str(problem).splitlines()[0][:120]
        return Check(name, ok=False, seen=f"raises: {line}", mode=lab.mode)


def _huge_scores(lab: Lab) -> Iterator[Check]:
    import torch

    lab.require_mps("the limit is MPSGraph's; other devices have none such")
    if lab.training:
        raise Skip("the gradients of so long a sequence need more memory than most machines have")
    if lab.emulation is None:
        available = torch.mps.recommended_max_memory()
        if available < HUGE_MEMORY:
            raise Skip(f"needs 24 GiB of GPU memory, this machine offers {available / 2**30:.0f}")
    q = torch.zeros(1, 1, HUGE_LENGTH, 80, device=lab.device)
    with spared_machine() if lab.emulation else nullcontext():
        output = lab.attend(q, q, q)
    right = not bool(output.any())
    yield Check(f"{HUGE_LENGTH} tokens, float32", right, "right" if right else "wrong values", lab.mode)


@contextmanager
def spared_machine() -> Iterator[None]:
    """Let an emulation begin, so that it can abort, and stop it before it takes minutes and fills the memory.

    Raises:
        Skip: No abort came; nothing is known of the values.
    """
    import psutil
    from torch.utils._python_dispatch import TorchDispatchMode

    from mpsdiag.emulation import EmulatedAbort

    without_abort = (
        "no abort; to compute it on a CPU would take minutes and 4 GiB, so nothing is said of its values"
    )
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


PROBES: Final = (
    Probe(
        id="SDPA010",
        title="enable_gqa takes the process down",
        symptom="LLVM ERROR: Failed to infer result type(s), and the process is gone.",
        upstream=(
            "https://github.com/pytorch/pytorch/issues/149132",
            "https://github.com/nari-labs/dia/issues/197",
        ),
        releases=span(5, 6),
        fixed="2.7.0",
        hits="evaluation",
        remedy=Remedy(
            "Upgrade torch, or repeat the key and value heads with repeat_interleave before the call.",
            ("pip install --upgrade 'torch>=2.7'",),
        ),
        trigger=_grouped_heads,
        bad="an abort",
        good="right values",
        isolated=True,
    ),
    Probe(
        id="SDPA011",
        title="Inputs of three or five dimensions raise or take the process down",
        symptom="Vision models (Qwen2-VL, Swin) end with an index error or with 'incompatible dimensions'.",
        upstream=(
            "https://github.com/pytorch/pytorch/pull/146623",
            "https://github.com/pytorch/pytorch/issues/147443",
            "https://github.com/huggingface/transformers/issues/36891",
        ),
        releases=span(5, 6),
        fixed="2.7.0",
        hits="evaluation",
        remedy=Remedy(
            "Upgrade torch, or reshape to (B, H, L, D) before the call.",
            ("pip install --upgrade 'torch>=2.7'",),
        ),
        trigger=_other_ranks,
        bad="an error or an abort",
        good="right values",
        isolated=True,
    ),
    Probe(
        id="SDPA019",
        title="Scores above 2**32 bytes take the process down",
        symptom="failed assertion: total bytes of NDArray > 2**32, on long sequences; no Python exception.",
        upstream=(
            "https://github.com/pytorch/pytorch/issues/149261",
            "https://github.com/pytorch/pytorch/issues/146769",
            "https://github.com/pytorch/pytorch/issues/143859",
        ),
        releases=span(5, 12),
        fixed="open; 2.13.0 avoids it for the head dims of its prefill kernels",
        hits="evaluation",
        remedy=Remedy("Attend in chunks of the query, or keep B * H * L * S * 4 bytes below 4 GiB."),
        trigger=_huge_scores,
        bad="an abort",
        good="right values",
        isolated=True,
        last_macos=15,
    ),
)
