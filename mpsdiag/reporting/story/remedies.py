"""Which pairs of attention mode and trainer resolve it, the recommended one first, and what that costs in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from mpsdiag.reporting.story import figures
from mpsdiag.reporting.story.cost import Estimate
from mpsdiag.reporting.story.marks import exact, moved_by
from mpsdiag.reporting.story.pool import Result

VAGUE = 0.5
"""Width of an interval, relative to its ratio, above which the ratio is not worth a sentence without a warning."""

Pair = tuple[str, str]
"""An attention mode and a trainer variant."""


@dataclass(frozen=True)
class Fix:
    """A pair of attention mode and trainer, right wherever it was run, and run wherever it is needed.

    `exact`: known to equal stock SDPA on the CPU everywhere.
    `moved`: greatest shift of the evaluation loss in nats, None if not measured everywhere.
    `eval_ratio`: evaluation step against the baseline's, geometric mean over the settings, None if not timed.
    """

    attention: str
    trainer: str
    exact: bool
    moved: float | None
    eval_ratio: float | None
    spread: tuple[float, float] | None
    """Interval of the ratio where there is one setting, else least and greatest ratio."""
    settings: int
    """In how many settings it was timed of those where the baseline fails."""

    def changes(self, stock: Pair) -> int:
        """How many things it changes of the baseline's attention and trainer."""
        return (self.attention != stock[0]) + (self.trainer != stock[1])

    def words(self, stock: Pair) -> str:
        """What to use, in words."""
        parts = []
        if self.attention != stock[0]:
            parts.append(f"{self.attention} attention")
        if self.trainer != stock[1]:
            parts.append(f"the {self.trainer} trainer")
        return " with ".join(parts)


def find(
    spots: Mapping[tuple[int, str], Mapping[Pair, Result]],
    trouble: set[tuple[int, str]],
    stock: Pair,
    ratios: Mapping[Pair, Sequence[Estimate]],
) -> tuple[Fix, ...]:
    """Find what resolves it: right wherever it was run, and run wherever the baseline fails.

    Args:
        spots: The cells of each panel and padding side, by their pair.
        trouble: Where the baseline fails.
        stock: The baseline.
        ratios: Of the evaluation step to the baseline, where that fails.

    Returns:
        Exact ones first; then those that change less; then another attention before another trainer, since the one
        mends the cause and the other goes round it; then the faster ones.
    """
    pairs: dict[Pair, list[Result]] = {}
    for spot in spots.values():
        for pair, one in spot.items():
            pairs.setdefault(pair, []).append(one)
    pairs.pop(stock, None)
    fixes = []
    for pair, met in pairs.items():
        answered = [one for one in met if one.status not in {"skip", "interrupted"}]
        needed = [spots[key].get(pair) for key in trouble]
        if all(one.correct for one in answered) and all(one is not None and one.correct for one in needed):
            fixes.append(_fix(pair, met, ratios.get(pair, ())))
    return tuple(
        sorted(
            fixes,
            key=lambda fix: (
                not fix.exact,
                fix.changes(stock),
                fix.trainer != stock[1],
                math.inf if fix.eval_ratio is None else fix.eval_ratio,
            ),
        )
    )


def recommend(fixes: Sequence[Fix], stock: Pair, timed_on: str) -> str:
    """Say in a sentence what to use, how well it works and what it costs.

    Args:
        fixes: The recommended one first.
        stock: The baseline.
        timed_on: Says what the timings were measured on where that is not what the verdict is about; else empty.
    """
    if not fixes:
        return "No fix that was run resolves it everywhere."
    best = fixes[0]
    if best.exact:
        quality = "it resolves it and is exact"
    elif not best.moved:
        quality = "it resolves it"
    else:
        quality = f"it resolves it, the loss moves by {figures.moved(best.moved)}"
    price = "" if best.eval_ratio is None else f"; an evaluation step takes {_price(best)}{timed_on}"
    return f"Use {best.words(stock)}: {quality}{price}."


def _fix(pair: Pair, met: Sequence[Result], rows: Sequence[Estimate]) -> Fix:
    shifts = [moved_by(one) for one in met if one.correct]
    known = [shift for shift in shifts if shift is not None]
    values = [row.value for row in rows if row.value > 0]
    spread = None
    if len(rows) == 1 and rows[0].low is not None and rows[0].high is not None:
        spread = (rows[0].low, rows[0].high)
    elif len(values) > 1:
        spread = (min(values), max(values))
    return Fix(
        attention=pair[0],
        trainer=pair[1],
        exact=all(exact(one) for one in met if one.correct),
        moved=max(known, key=abs) if known and len(known) == len(shifts) else None,
        eval_ratio=geometric_mean(values) if values else None,
        spread=spread,
        settings=len(values),
    )


def _price(fix: Fix) -> str:
    ratio, spread = fix.eval_ratio, fix.spread
    if ratio is None or spread is None:
        return f"{figures.ratio(ratio)} the baseline's"
    low, high = spread
    if fix.settings > 1:
        return f"{figures.ratio(ratio)} the baseline's ({low:.2f} to {high:.2f} in {fix.settings} settings)"
    vague = " (a noisy machine: run more rounds)" if high - low > VAGUE * ratio else ""
    return f"{figures.ratio(ratio, low, high)} the baseline's{vague}"
