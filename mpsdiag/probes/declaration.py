"""Probes and their findings, without torch: the catalogue is listed without loading it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from mpsdiag.emulation.releases import KNOWN, Defect, Remedy
from mpsdiag.words import ProbeStatus

if TYPE_CHECKING:
    from mpsdiag.probes.lab import Lab

Mode = Literal["training", "evaluation"]

MODES: Final[tuple[Mode, ...]] = ("training", "evaluation")
ABORTS: Final = "aborts the process"


@dataclass(frozen=True)
class Check:
    """One judged output of a probe.

    `name` is what was run (`bool mask, float16, 4 queries`), `seen` the outcome in two or three words
    (`right`, `NaN`, `wrong`), `error` the largest absolute difference from the float64 reference, `bound`
    what the contract allows it to be, `at` the place in the sweep: dtype, head_dim, queries, keys, mask,
    layout.
    """

    name: str
    ok: bool
    seen: str
    mode: Mode = "evaluation"
    error: float | None = None
    bound: float | None = None
    at: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.seen}"


@dataclass(frozen=True)
class ModeResult:
    """The result of a trigger in one grad mode; `reason` is why nothing ran, or the first line of the exception."""

    status: ProbeStatus
    checks: tuple[Check, ...] = ()
    reason: str = ""


class Skip(Exception):  # noqa: N818 - not an error: the reason why a trigger cannot run here
    """Raised by a trigger that cannot run here; its text is the reason the user reads."""


class Refused(Skip):
    """The forced SDPA backend does not support this call."""


@dataclass(frozen=True)
class Finding:
    """The finding of one probe on one device.

    `status` is the worse of the two grad modes, `skip` only if neither ran; `training` is the outcome with
    gradients wanted, `evaluation` under `no_grad`. `detail` is one sentence: what was seen, or why nothing
    was run. `cases` outputs were judged; the contract calls those in `failed` wrong. `backend` is the SDPA
    backend that was forced, if any.
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

    `trigger` yields judged outputs in the lab's mode, and raises `Skip` where it cannot run. `explains`
    decides whether this defect accounts for a failed combination of the sweep; `note` adds a sentence to
    `Finding.detail`.
    """

    trigger: Callable[[Lab], Iterable[Check]] | None = None
    explains: Callable[[Mapping[str, Any]], bool] | None = None
    note: Callable[[Sequence[Check]], str] | None = None


PROBES: Final = {name: Probe(**vars(defect)) for name, defect in KNOWN.items()}
"""By id; those with a trigger get it from `shows`."""
Trigger = Callable[["Lab"], Iterable[Check]]


def shows(name: str, **more: Any) -> Callable[[Trigger], Trigger]:
    """Make a function the trigger of the defect with this id; `more` are `explains` and `note`."""

    def take(trigger: Trigger) -> Trigger:
        PROBES[name] = replace(PROBES[name], trigger=trigger, **more)
        return trigger

    return take
