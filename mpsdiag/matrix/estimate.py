"""How long a matrix will take: from what its journal has already, else from rough figures of built-in models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mpsdiag.matrix.isolation import StartMethod
from mpsdiag.matrix.record import Cell, Record
from mpsdiag.matrix.rounds import StopRule
from mpsdiag.matrix.statistics import median

# Seconds of one leg of a built-in model on two CPU cores, and of starting a fresh interpreter with its imports.
VERDICT, TIMING, FRESH = 1.5, 0.6, 5.0


def estimate(
    cells: Sequence[Cell],
    rule: StopRule,
    start: StartMethod,
    records: Iterable[Record] = (),
    *,
    jobs: int = 1,
    machines: int = 1,
) -> tuple[float, float]:
    """Seconds that a run takes at least and at most.

    Args:
        cells: To run.
        rule: Timing rounds.
        start: How processes are started.
        records: Of an earlier run; their durations are better than any guess.
        jobs: Verdicts at once on a machine.
        machines: How many work side by side.
    """
    known = list(records)
    fresh = FRESH if start == "spawn" else 0.0
    verdict = median([one.seconds for one in known if one.round == 0 and one.status != "skip"])
    timing = median([one.seconds for one in known if one.round > 0])
    verdict = VERDICT + fresh if verdict != verdict else verdict  # noqa: PLR0124 - NaN: none is known
    timing = TIMING + fresh if timing != timing else timing  # noqa: PLR0124 - likewise
    boot = FRESH if start == "forkserver" else 0.0
    least, most = (
        boot + len(cells) / machines * (verdict / jobs + rounds * timing)
        for rounds in (rule.rounds, max(rule.rounds, rule.most))
    )
    return least, most


def in_words(seconds: float) -> str:
    """A duration as people say it: `40 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
