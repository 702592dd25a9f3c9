"""Repeats the published runs of Macs: the result of a run, its registration and its comparison."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mpsdiag.emulation.mode import suspended
from mpsdiag.emulation.selection import EmulatedAbort


@dataclass(frozen=True)
class Run:
    """The result of the emulation.

    Attributes:
        outcome: ok, nan, wrong, leak, raises or aborts.
        said: One phrase for the table.
        figures: Values to compare with what was printed, by name.
    """

    outcome: str
    said: str
    figures: dict[str, Any] = field(default_factory=dict)


RUNS: dict[str, Callable[[], Run]] = {}
"""The re-runs by id; each runs inside the emulation."""


def rerun(*ids: str) -> Callable[[Callable[[], Run]], Callable[[], Run]]:
    """Register a function for these observations."""

    def register(function: Callable[[], Run]) -> Callable[[], Run]:
        RUNS.update(dict.fromkeys(ids, function))
        return function

    return register


def direct(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, **rest: Any) -> Tensor:
    """The MPS operator itself."""
    operator = torch.ops.aten._scaled_dot_product_attention_math_for_mps  # noqa: SLF001 - what the threads call
    return operator(query, key, value, mask, **rest)[0]


def plain(*args: Any, **rest: Any) -> Tensor:
    """Attention of the real CPU, which the threads compare with."""
    with suspended():
        return F.scaled_dot_product_attention(*args, **rest)


def drawn(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal float32 tensors, one after the other from one seed, as the threads' scripts draw them."""
    torch.manual_seed(seed)
    return [torch.randn(shape) for shape in shapes]


def off_by(output: Tensor, expected: Tensor) -> float:
    """Largest absolute difference."""
    return float((output.double() - expected.double()).abs().max())


def finite(output: Tensor) -> str:
    """`ok` or `nan`."""
    return "nan" if bool(output.isnan().any()) else "ok"


def attempt(call: Callable[[], Tensor]) -> Run:
    """Run a call that may raise or abort."""
    try:
        call()
    except EmulatedAbort as abort:
        return Run("aborts", f"aborts: {str(abort).partition(' (')[0]}")
    except (RuntimeError, IndexError) as problem:
        message = str(problem).splitlines()[0]
        return Run("raises", f"{type(problem).__name__}: {message}", {"message": message})
    return Run("ok", "runs without an error")


def agrees(printed: str, value: Any) -> bool:
    """Whether a value, rounded to the printed digits, equals the printed one.

    Args:
        printed: As it stands in the thread.
        value: What the emulation gave; text is compared as text.
    """
    if isinstance(value, str):
        return printed == value
    digits = len(printed.partition(".")[2])
    return math.isfinite(value) and f"{value:.{digits}f}" == printed
