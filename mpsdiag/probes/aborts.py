"""Inputs that take the whole process down: run in a child, never here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from mpsdiag.emulation import EmulatedAbort
from mpsdiag.probes.declaration import Check, Probe, Remedy, Skip, span

if TYPE_CHECKING:
    from torch import Tensor

    from mpsdiag.probes.lab import Lab

HUGE_LENGTH: Final = 32_800
"""One float32 score matrix of this size is a little over 2**32 bytes."""
ADDRESS_SPACE: Final = 6 * 2**30
"""What an emulated run of it may allocate before the machine is spared; an abort comes long before."""


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
    try:
        return lab.check(name, q, k, v, mask)
    except EmulatedAbort:
        raise
    except (RuntimeError, IndexError, ValueError) as problem:
        line = str(problem).splitlines()[0][:120]
        return Check(name, ok=False, seen=f"raises: {line}", mode=lab.mode)


def _huge_scores(lab: Lab) -> Iterator[Check]:
    import torch

    if lab.training:
        raise Skip("the gradients of so long a sequence need more memory than most machines have")
    if lab.emulation is None:
        lab.require_real_mps("the limit is MPSGraph's; other devices have none such")
        available = torch.mps.recommended_max_memory()
        if available < 24 * 2**30:
            raise Skip(f"needs 24 GiB of GPU memory, this machine offers {available / 2**30:.0f}")
    else:
        _spare_the_machine()
    q = torch.zeros(1, 1, HUGE_LENGTH, 80, device=lab.device)
    try:
        output = lab.attend(q, q, q)
    except EmulatedAbort:
        raise
    except (RuntimeError, MemoryError) as problem:
        if "memory" not in str(problem).lower():
            raise
        raise Skip("no abort, but not enough memory to finish: nothing is said") from problem
    right = not bool(output.any())
    yield Check(f"{HUGE_LENGTH} tokens, float32", right, "right" if right else "wrong values", lab.mode)


def _spare_the_machine() -> None:
    """Cap this (child) process, so that an emulation without the abort runs into an exception, not into swap."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, hard))


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
