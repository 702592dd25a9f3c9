"""The causes, one rule or family of rules a file. The first that fits names the cause; `unknown` when none does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mpsdiag.tracing.causes.arithmetic import device_only, overflow
from mpsdiag.tracing.causes.attention import attention_over_nothing
from mpsdiag.tracing.causes.data import bad_inputs, bad_weights, index_out_of_range
from mpsdiag.tracing.causes.labels import no_labels
from mpsdiag.tracing.causes.masks import mask_arithmetic
from mpsdiag.tracing.causes.root_cause import Candidate, Explanation
from mpsdiag.tracing.causes.unknown import unknown

__all__ = ["Candidate", "Explanation", "explain"]

_RULES: Final[tuple[Callable[[Candidate], Explanation | list[Explanation] | None], ...]] = (
    bad_weights,
    bad_inputs,
    index_out_of_range,
    no_labels,
    mask_arithmetic,
    attention_over_nothing,
    overflow,
    device_only,
    unknown,
)


def explain(birth: Candidate) -> list[Explanation]:
    """Find the cause of a birth; more than one where several meet in the same operation.

    Args:
        birth: What is known about it.
    """
    found = next(found for rule in _RULES if (found := rule(birth)))
    return found if isinstance(found, list) else [found]
