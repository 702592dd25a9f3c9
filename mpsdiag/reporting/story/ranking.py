"""What each fix costs: durations, and ratios to the baseline. Only correct cells are ranked."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mpsdiag.benching.journal.pooling import PooledCell, in_common
from mpsdiag.reporting.story.figures import Mark, mark, severity
from mpsdiag.statistics import (
    NOISY,
    Interval,
    bootstrap_interval,
    iqr_ratio,
    mad,
    mann_whitney,
    ratio_interval_of_rounds,
    ratio_of_rounds,
)
from mpsdiag.words import PADDING_SIDES, TRAINER_VARIANTS

# Resampling intervals takes about 0.1 ms a sample: this many samples take about 1.5 s; a note reports the rest.
INTERVALS_FOR = 15_000
# The least cost of a cell, in samples.
_OVERHEAD = 40


@dataclass(frozen=True)
class Estimate:
    """Median of n durations in seconds, or of a ratio, with its 95 % interval if one was computed."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    mad: float | None = None
    """Median absolute deviation of the samples, only for durations."""
    p: float | None = None
    """p-value that neither side tends to be larger (Mann-Whitney, two-sided), only for ratios."""
    noisy: bool = False
    """Whether the interquartile range is more than a tenth of the median."""


@dataclass(frozen=True)
class CostRow:
    """One timed cell. `rank` counts the correct cells from the fastest; None: not correct, so no ratios either."""

    result: PooledCell
    mark: Mark
    rank: int | None
    baseline: bool
    train_step: Estimate | None
    eval_step: Estimate | None
    train_ratio: Estimate | None
    eval_ratio: Estimate | None
    tokens_per_second: float | None
    """Real tokens (without padding) of an evaluation step per second."""
    train_tokens_per_second: float | None
    """The same for a training step."""


@dataclass(frozen=True)
class CostTable:
    """The timed cells of one panel and padding side, correct ones first, fastest first."""

    padding: str
    timed_on: tuple[str, ...]
    emulated: bool
    """The verdicts come from an emulation; the timings do not: they are from `timed_on`, without emulation."""
    baseline_mark: Mark | None
    """The result of the baseline itself; None if it was not timed here, in which case there are no ratios."""
    rows: tuple[CostRow, ...]


class Budget:
    """How many more samples may be resampled for intervals; it counts the cells without an interval."""

    def __init__(self) -> None:
        self._left = INTERVALS_FOR
        self._without = 0

    def take(self, *cells: PooledCell) -> bool:
        """Whether the intervals of these cells may be computed."""
        samples = sum(len(values) for one in cells for values in (one.eval_step, one.train_step))
        if self._left > 0:
            self._left -= _OVERHEAD + samples
            return True
        self._without += 1
        return False

    def notes(self) -> tuple[str, ...]:
        """How many cells got no interval, if any."""
        if not self._without:
            return ()
        cells = "1 cell is" if self._without == 1 else f"{self._without:,} cells are"
        return (f"{cells} shown without intervals, to save time. Report fewer cells at once to see them.",)


def rank(results: Sequence[PooledCell], baseline: str, budget: Budget) -> tuple[CostTable, ...]:
    """Rank the timed cells of a panel, separately for each padding side."""
    timed = [one for one in results if one.eval_step or one.train_step]
    sides = {side: [one for one in timed if one.side == side] for side in PADDING_SIDES}
    return tuple(_table(side, cells, baseline, budget) for side, cells in sides.items() if cells)


def reference_trainer(results: Sequence[PooledCell], baseline: str) -> str:
    """Trainer of the baseline cells: the standard one, or the first one if it was not run."""
    trainers = {one.pair[1] for one in results if one.pair[0] == baseline}
    return next((word for word in TRAINER_VARIANTS if word in trainers), "standard")


def _table(side: str, timed: Sequence[PooledCell], baseline: str, budget: Budget) -> CostTable:
    trainer = reference_trainer(timed, baseline)
    reference = next((one for one in timed if one.pair == (baseline, trainer)), None)
    order = sorted(timed, key=lambda one: (not one.correct, severity(one.status), _speed(one)))
    rows = []
    for number, one in enumerate(order, start=1):
        full = budget.take(one)
        # A ratio is a claim about a fix; an incorrect cell makes none.
        base = reference if one.correct else None
        rows.append(
            CostRow(
                result=one,
                mark=mark([one]),
                rank=number if one.correct else None,
                baseline=one is reference,
                train_step=_estimate(one.train_step, full=full),
                eval_step=_estimate(one.eval_step, full=full),
                train_ratio=ratio(one.train_rounds, base.train_rounds, full=full) if base else None,
                eval_ratio=ratio(one.eval_rounds, base.eval_rounds, full=full) if base else None,
                tokens_per_second=_rate(one.timing.eval_tokens, one.eval_step),
                train_tokens_per_second=_rate(one.timing.train_tokens, one.train_step),
            )
        )
    return CostTable(
        padding=side,
        timed_on=tuple(dict.fromkeys(one.timing.device for one in timed)),
        emulated=any(one.cell.emulate is not None for one in timed),
        baseline_mark=None if reference is None else mark([reference]),
        rows=tuple(rows),
    )


def _speed(result: PooledCell) -> tuple[float, float]:
    """Sort key: the evaluation step, which has the defect, then the training step."""
    middle = [statistics.median(values) if values else math.inf for values in (result.eval_step, result.train_step)]
    return middle[0], middle[1]


def _estimate(values: Sequence[float], *, full: bool) -> Estimate | None:
    if not values:
        return None
    spread = bootstrap_interval(values) if full else None
    noisy = full and iqr_ratio(values) > NOISY
    return Estimate(statistics.median(values), *_ends(spread), n=len(values), mad=mad(values), noisy=noisy)


def _ends(spread: Interval | None) -> tuple[float | None, float | None]:
    return (spread.low, spread.high) if spread else (None, None)


def ratio(ours: Mapping[int, list[float]], theirs: Mapping[int, list[float]], *, full: bool) -> Estimate | None:
    """Median ratio over the rounds that both sides ran; with `full` its interval and the Mann-Whitney test.

    If the stop rule gave one side more rounds, those are from another time of day and say nothing about the ratio.
    Without any common round it is the ratio of all medians.
    """
    above, below = in_common(ours, theirs)
    if not above:
        above, below = ([[value for values in side.values() for value in values]] for side in (ours, theirs))
    ours_flat, theirs_flat = ([value for values in side for value in values] for side in (above, below))
    if not ours_flat or not theirs_flat:
        return None
    spread = ratio_interval_of_rounds(above, below) if full else None
    p = mann_whitney(ours_flat, theirs_flat) if full else None
    return Estimate(ratio_of_rounds(above, below), *_ends(spread), n=len(ours_flat), p=p)


def _rate(tokens: int, steps: Sequence[float]) -> float | None:
    return tokens / statistics.median(steps) if tokens and steps else None
