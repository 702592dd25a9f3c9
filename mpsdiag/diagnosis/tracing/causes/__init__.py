"""The causes, one rule or family of rules a file. The first that fits names the cause; `unknown` when none does."""

from __future__ import annotations

from mpsdiag.diagnosis.tracing.causes.arithmetic import device_only, overflow
from mpsdiag.diagnosis.tracing.causes.attention import attention_over_nothing
from mpsdiag.diagnosis.tracing.causes.birth import Birth, Explanation
from mpsdiag.diagnosis.tracing.causes.given import bad_inputs, bad_weights, index_out_of_range
from mpsdiag.diagnosis.tracing.causes.labels import no_labels
from mpsdiag.diagnosis.tracing.causes.masks import mask_arithmetic
from mpsdiag.diagnosis.tracing.causes.unknown import unknown

__all__ = ["Birth", "Explanation", "explain"]

_RULES = (bad_weights, bad_inputs, index_out_of_range, no_labels, mask_arithmetic)
_LATER_RULES = (overflow, device_only)


def explain(birth: Birth) -> list[Explanation]:
    """Find the cause of a birth; more than one where several meet in the same operation.

    Args:
        birth: What is known about it.
    """
    for rule in _RULES:
        found = rule(birth)
        if found is not None:
            return [found]
    several = attention_over_nothing(birth)
    if several:
        return several
    for rule in _LATER_RULES:
        found = rule(birth)
        if found is not None:
            return [found]
    return [unknown(birth)]
