"""What a probe is and what it finds. No torch here: the catalogue is listed without loading it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from mpsdiag.words import ProbeStatus

if TYPE_CHECKING:
    from mpsdiag.probes.lab import Lab

Hits = Literal["training", "evaluation", "both"]

LAST_MINOR: Final = 15
"""The newest 2.x release whose kernels have been read; later ones are predicted to be like it."""


def span(first: int, last: int) -> tuple[str, ...]:
    """Name the releases 2.`first` to 2.`last`, both included."""
    return tuple(f"2.{minor}" for minor in range(first, last + 1))


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
class Remedy:
    """What to do about a defect.

    Attributes:
        text: One or two sentences.
        commands: Lines that can be pasted into a shell; none where only the code can be changed.
    """

    text: str
    commands: tuple[str, ...] = ()


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
class Probe:
    """A known defect, with the smallest trigger that shows it.

    Attributes:
        id: Stable: `SDPA0NN`, in the order of the project's table of defects.
        title: One line.
        symptom: What the user sees.
        upstream: Threads where it was reported or fixed.
        releases: Minor torch releases whose MPS backend has it; empty where none released has.
        fixed: The release that no longer has it, or the words for why there is none.
        hits: Whether it strikes training (gradients wanted), evaluation (`no_grad`), or both.
        remedy: What to do about it.
        trigger: Yields judged outputs in the lab's mode; raises `Skip` where it cannot run.
        bad: What an affected machine gives, in a few words that fit after "should give".
        good: What a healthy one gives.
        level: The lowest level of `check` that runs it.
        isolated: It may take the process down, so it is run in a child.
        first_macos: The oldest macOS it can happen on, if that matters.
        last_macos: The newest, likewise.
        training_releases: Where training is hit in other releases than evaluation: those.
        control: The device whose result is the reference.
        explains: Says of a combination of the sweep whether this defect accounts for its failure.
        note: Makes the sentence for `Finding.detail` from all checks, where counts do not say enough.
        never_run: Why there is nothing to run anywhere, for entries that are only knowledge.
    """

    id: str
    title: str
    symptom: str
    upstream: tuple[str, ...]
    releases: tuple[str, ...]
    fixed: str
    hits: Hits
    remedy: Remedy
    trigger: Callable[[Lab], Iterable[Check]] | None
    bad: str
    good: str
    level: Literal[1, 2, 3] = 3
    isolated: bool = False
    first_macos: int | None = None
    last_macos: int | None = None
    training_releases: tuple[str, ...] = ()
    control: str = "cpu"
    explains: Callable[[Mapping[str, Any]], bool] | None = None
    note: Callable[[Sequence[Check]], str] | None = None
    never_run: str | None = None

    @property
    def where(self) -> str:
        """The releases in words: `2.5 to 2.6, 2.10 to 2.15`, `none released`, or `not established`."""
        if not self.releases:
            return "none released" if self.never_run else "not established"
        runs: list[list[int]] = []
        for minor in (int(release.partition(".")[2]) for release in self.releases):
            if runs and minor == runs[-1][-1] + 1:
                runs[-1].append(minor)
            else:
                runs.append([minor])
        return ", ".join(f"2.{run[0]}" if len(run) == 1 else f"2.{run[0]} to 2.{run[-1]}" for run in runs)
