"""The mark of a cell: what it says about the fix, in one word and one tone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mpsdiag.reporting.story import figures

if TYPE_CHECKING:
    from mpsdiag.benching.journal.pooling import PooledCell

Tone = Literal["plain", "good", "moved", "bad", "broken", "muted"]


@dataclass(frozen=True)
class Mark:
    """`symbol` and `text` say the same; `tone` chooses the colour, which is never the only sign."""

    symbol: str
    text: str
    tone: Tone

    def __str__(self) -> str:
        return f"{self.symbol} {self.text}"


NOT_RUN = Mark("·", "not run", "muted")
EXACT = Mark("✓", "exact", "good")

# Worst first: of several cells behind one mark the worst is shown, with how many they are.
_SEVERITY = ("nan", "wrong", "crash", "oom", "timeout", "error", "interrupted", "skip", "ok")
_BROKEN = {"crash": "crashed", "oom": "out of memory", "timeout": "timeout", "error": "error"}


def severity(status: str) -> int:
    """Rank of a status, 0 the worst."""
    return _SEVERITY.index(status)


def moved_by(result: PooledCell) -> float | None:
    """By how much the loss moved away from stock SDPA on the CPU, in nats; None if not measured."""
    return None if result.measured is None else result.measured.loss_moved_by


def exact(result: PooledCell) -> bool | None:
    """Whether it equals stock SDPA on the CPU, in fully masked rows too; None if that was not measured."""
    measured = result.measured
    if measured is None:
        return None
    if measured.exact is not None:
        return measured.exact
    return None if measured.loss_moved_by is None else measured.loss_moved_by == 0.0


def mark(results: Sequence[PooledCell]) -> Mark:
    """Sum up one cell, or several behind one place of a table, with one mark."""
    if not results:
        return NOT_RUN
    if len(results) == 1 and results[0].status == "ok" and exact(results[0]):
        return EXACT  # what nearly every cell of a large report is
    status = min((result.status for result in results), key=severity)
    if status == "ok":
        return _correct(results)
    share = sum(result.status == status for result in results)
    of = f" {share}/{len(results)}" if share < len(results) else ""
    if status in {"nan", "wrong"}:
        return Mark("✗", ("NaN" if status == "nan" else "wrong") + of, "bad")
    if status in _BROKEN:
        return Mark("!", _BROKEN[status] + of, "broken")
    return Mark("·", ("interrupted" if status == "interrupted" else "not run") + of, "muted")


def _correct(results: Sequence[PooledCell]) -> Mark:
    if all(exact(result) for result in results):
        return EXACT
    largest = max((shift for one in results if (shift := moved_by(one)) and not exact(one)), key=abs, default=0.0)
    if largest != 0.0:
        return Mark("≈", f"moved {figures.moved(largest)}", "moved")
    return Mark("✓", "correct", "good")
