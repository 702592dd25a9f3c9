"""What a trigger yields in one grad mode: judged outputs, or why there are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from mpsdiag.words import ProbeStatus

Mode = Literal["training", "evaluation"]

MODES: Final[tuple[Mode, ...]] = ("training", "evaluation")
ABORTS: Final = "aborts the process"


@dataclass(frozen=True)
class Check:
    """One judged output of a probe.

    Attributes:
        name: What was run, such as `bool mask, float16, 4 queries`.
        ok: Whether the contract calls the outcome right.
        seen: The outcome in two or three words: `right`, `NaN`, `wrong`, `aborts the process`.
        mode: Whether gradients were wanted.
        error: Largest absolute difference from the float64 reference, where there is one.
        bound: What the contract allows it to be.
        at: Where in the sweep it is: dtype, head_dim, queries, keys, mask, layout.
    """

    name: str
    ok: bool
    seen: str
    mode: Mode = "evaluation"
    error: float | None = None
    bound: float | None = None
    at: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ModeResult:
    """What a trigger gave in one grad mode.

    Attributes:
        status: Of this mode alone.
        checks: All judged outputs, in order.
        reason: Why nothing ran, or the one line of the exception.
    """

    status: ProbeStatus
    checks: tuple[Check, ...] = ()
    reason: str = ""


class Skip(Exception):  # noqa: N818 - not an error: the reason why a trigger cannot run here
    """Raised by a trigger that cannot run here; its text is the reason the user reads."""


class Refused(Skip):
    """The SDPA backend that was forced does not take this call."""
