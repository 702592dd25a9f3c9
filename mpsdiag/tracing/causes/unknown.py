"""When no rule fits: say so, with all that was seen, and a hint where the operation itself gives one."""

from __future__ import annotations

from mpsdiag.findings import Advice
from mpsdiag.tracing.causes.root_cause import Candidate, Explanation

_HINTS = {
    "div": "a division by zero",
    "reciprocal": "a division by zero",
    "rsqrt": "the root of zero or of a negative number",
    "sqrt": "the root of a negative number",
    "log": "the logarithm of zero or of a negative number",
}


def unknown(birth: Candidate) -> Explanation:
    """The place is known, the reason is not."""
    event = birth.event
    hint = _HINTS.get(event.operation)
    guess = f"; {hint}?" if hint else ""
    made = "NaN" if event.impurity.nan else "an infinity"
    where = "comes out of" if birth.terminal.kind in ("nan", "inf") else "comes, from out of sight, into"
    return Explanation(
        "unknown",
        f"{made} {where} {event.operation}, and no known cause fits{guess}",
        Advice(
            text="Look at the inputs' ranges in the evidence. A script with this operation alone, to be reported:",
            commands=["mpsdiag trace ... --repro repro.py"],
        ),
        {"device": birth.device},
    )
