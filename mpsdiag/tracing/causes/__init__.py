"""The causes, one family of rules a file. The first that fits names the cause; `unknown` when none does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mpsdiag.tracing.causes.arithmetic import device_only, division_by_zero, infinite_logits, overflow, unknown
from mpsdiag.tracing.causes.given_values import bad_inputs, bad_weights, no_labels
from mpsdiag.tracing.causes.indices import index_out_of_range
from mpsdiag.tracing.causes.masks import attention_over_nothing, mask_arithmetic
from mpsdiag.tracing.causes.root_cause import Candidate
from mpsdiag.tracing.origin import Origin

__all__ = ["Candidate", "explain"]

_RULES: Final[tuple[Callable[[Candidate], Origin | list[Origin] | None], ...]] = (
    bad_weights,
    bad_inputs,
    index_out_of_range,
    no_labels,
    mask_arithmetic,
    attention_over_nothing,
    infinite_logits,
    division_by_zero,
    overflow,
    device_only,
    unknown,
)


def explain(first: Candidate) -> list[Origin]:
    """Find the cause; more than one where several meet in the same operation."""
    found = next(found for rule in _RULES if (found := rule(first)))
    return found if isinstance(found, list) else [found]
