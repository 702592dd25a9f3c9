"""What a probe is and what it finds. No torch here: the catalogue is listed without loading it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from mpsdiag.emulation.defects import KNOWN, Defect, Remedy
from mpsdiag.words import ProbeStatus

if TYPE_CHECKING:
    from mpsdiag.probes.lab import Lab

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


@dataclass(frozen=True)
class Finding:
    """What one probe found on one device.

    Attributes:
        id: The probe's stable id.
        title: The probe's one line.
        status: The worse of the two modes; `skip` only if neither ran.
        detail: One sentence: what was seen, or why nothing was run.
        training: Outcome with gradients wanted.
        evaluation: Outcome under `no_grad`.
        cases: How many outputs were judged.
        failed: Those the contract calls wrong.
        remedy: What to do about it.
        upstream: Threads where it was reported.
        seen: Outcome in two or three words, of the failures if there are any.
        seconds: Wall-clock time the probe took.
        backend: The SDPA backend that was forced, if one was.
    """

    id: str
    title: str
    status: ProbeStatus
    detail: str
    training: ProbeStatus = "skip"
    evaluation: ProbeStatus = "skip"
    cases: int = 0
    failed: tuple[Check, ...] = ()
    remedy: Remedy = field(default_factory=lambda: Remedy(""))
    upstream: tuple[str, ...] = ()
    seen: str = ""
    seconds: float = 0.0
    backend: str | None = None


@dataclass(frozen=True)
class Probe(Defect):
    """A known defect, with the smallest trigger that shows it.

    Attributes:
        trigger: Yields judged outputs in the lab's mode; raises `Skip` where it cannot run.
        explains: Says of a combination of the sweep whether this defect accounts for its failure.
        note: Makes the sentence for `Finding.detail` from all checks, where counts do not say enough.
    """

    trigger: Callable[[Lab], Iterable[Check]] | None = None
    explains: Callable[[Mapping[str, Any]], bool] | None = None
    note: Callable[[Sequence[Check]], str] | None = None


def probe(name: str, trigger: Callable[[Lab], Iterable[Check]] | None = None, **more: Any) -> Probe:
    """The defect of that id as a probe; `more` are `explains` and `note`."""
    return Probe(**vars(KNOWN[name]), trigger=trigger, **more)
