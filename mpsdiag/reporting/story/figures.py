"""How numbers and results are written: durations, memory, ratios, losses, and the mark of a cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mpsdiag.benching.journal.pooling import PooledCell

NOTHING = "–"


_UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))
_SIZES = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def unit_of(value: float) -> tuple[str, float]:
    """The unit of time in which a duration is written, and its length in seconds."""
    return next((one for one in _UNITS if abs(value) >= one[1]), _UNITS[-1])


def seconds(value: float | None) -> str:
    """Write a duration given in seconds with three significant digits: `12.3 ms`."""
    if value is None or not math.isfinite(value):
        return NOTHING
    unit, scale = unit_of(value)
    return f"{_three(value / scale)} {unit}"


def interval(value: float, low: float | None, high: float | None) -> str:
    """Write a duration with its interval, both in the unit of the value: `12.3 ms [12.1, 12.6]`."""
    text = seconds(value)
    if low is None or high is None or not math.isfinite(low + high):
        return text
    scale = unit_of(value)[1]
    return f"{text} [{_three(low / scale)}, {_three(high / scale)}]"


def ratio(value: float, low: float | None = None, high: float | None = None) -> str:
    """Write a ratio to the baseline: `1.02× [0.99, 1.05]`."""
    text = f"{value:.2f}×"
    return text if low is None or high is None else f"{text} [{low:.2f}, {high:.2f}]"


def chance(value: float | None) -> str:
    """Write a p-value with two digits: `0.031`, `1e-05`."""
    return NOTHING if value is None else f"{value:.2g}"


def memory(value: int | None) -> str:
    """Write a number of bytes: `512 MiB`."""
    if value is None:
        return NOTHING
    unit, scale = next((one for one in _SIZES if value >= one[1]), ("B", 1))
    return f"{_three(value / scale) if scale > 1 else value} {unit}"


def rate(value: float | None) -> str:
    """Write tokens per second with thousands separators: `12,300`."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{float(_three(value)):,.0f}" if value >= 100 else _three(value)


def loss(value: float | None) -> str:
    """Write a loss in nats: `5.5413`, `NaN`, `inf`."""
    if value is None:
        return NOTHING
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return f"{value:.4f}"


def moved(value: float) -> str:
    """Write by how much a loss moved, with its sign: `+0.0012`, `-3e-06`."""
    if not math.isfinite(value):
        return loss(value)
    return f"{value:+.4f}" if abs(value) >= 0.001 else f"{value:+.1g}"


def _three(value: float) -> str:
    if value == 0:
        return "0"
    value = float(f"{value:.3g}")  # first, so that 99.97 is 100 and not 100.0
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"


Tone = Literal["plain", "good", "moved", "bad", "broken", "muted"]


@dataclass(frozen=True)
class Mark:
    """`symbol` and `text` mean the same; `tone` chooses the colour, which is never the only sign."""

    symbol: str
    text: str
    tone: Tone

    def __str__(self) -> str:
        return f"{self.symbol} {self.text}"


NOT_RUN = Mark("·", "not run", "muted")
EXACT = Mark("✓", "exact", "good")

# Worst first: if several cells share a mark, the worst is shown, with their number.
_SEVERITY = ("nan", "wrong", "crash", "oom", "timeout", "error", "interrupted", "skip", "ok")
_BROKEN = {"crash": "crashed", "oom": "out of memory", "timeout": "timeout", "error": "error"}


def severity(status: str) -> int:
    """Rank of a status, 0 the worst."""
    return _SEVERITY.index(status)


def moved_by(result: PooledCell) -> float | None:
    """How far the loss moved from stock SDPA on the CPU, in nats; None if not measured."""
    return None if result.measured is None else result.measured.loss_moved_by


def exact(result: PooledCell) -> bool | None:
    """Whether it equals stock SDPA on the CPU, even in fully masked rows; None if not measured."""
    measured = result.measured
    if measured is None:
        return None
    if measured.exact is not None:
        return measured.exact
    return None if measured.loss_moved_by is None else measured.loss_moved_by == 0.0


def mark(results: Sequence[PooledCell]) -> Mark:
    """Summarize one cell, or the several cells at one place of a table, by one mark."""
    if not results:
        return NOT_RUN
    if len(results) == 1 and results[0].status == "ok" and exact(results[0]):
        return EXACT  # the case of nearly every cell in a large report
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
        return Mark("≈", f"moved {moved(largest)}", "moved")
    return Mark("✓", "correct", "good")
