"""Medians, spreads, intervals and tests of durations. Inputs are raw samples in seconds; pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
NOISY = 0.10
"""Interquartile range over median above which a sample measures the machine rather than the work."""


@dataclass(frozen=True)
class Interval:
    """An interval, both ends included."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """From end to end."""
        return self.high - self.low

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def median(samples: Sequence[float]) -> float:
    """The median; NaN for no samples."""
    return float(np.median(samples)) if len(samples) else math.nan


def mad(samples: Sequence[float]) -> float:
    """The median absolute deviation from the median, not scaled; NaN for no samples."""
    return float(np.median(np.abs(np.asarray(samples) - np.median(samples)))) if len(samples) else math.nan


def iqr_ratio(samples: Sequence[float]) -> float:
    """Interquartile range over median; 0.0 below two samples or with a median of 0."""
    if len(samples) < 2:
        return 0.0
    low, middle, high = np.percentile(samples, [25, 50, 75])
    return float((high - low) / middle) if middle else 0.0


def bootstrap_interval(samples: Sequence[float]) -> Interval | None:
    """95 % percentile bootstrap interval of the median; None below two samples."""
    if len(samples) < 2:
        return None
    drawn = np.random.default_rng(0).integers(0, len(samples), size=(RESAMPLES, len(samples)))
    return _interval(np.median(np.asarray(samples, dtype=float)[drawn], axis=1))


def ratio_interval_of_rounds(rounds: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]]) -> Interval | None:
    """95 % bootstrap interval of the median ratio for samples that come in rounds, each in its own process.

    Samples of one process are alike (same memory layout, same time of day), so pooling them would claim too
    much precision. Each resample first draws rounds, the same for both sides because they ran side by side,
    and then samples within each round: a two-stage cluster bootstrap (Davison and Hinkley 1997, 3.8).
    None without rounds, or for a single round with fewer than two samples on a side.
    """
    sizes = [len(samples) for samples in (*rounds, *baseline)]
    if len(rounds) != len(baseline) or min(sizes, default=0) < (1 if len(rounds) > 1 else 2):
        return None
    if any(min(samples) <= 0 for samples in baseline):
        return None
    generator = np.random.default_rng(0)
    pairs = zip(rounds, baseline, strict=True)
    drawn_medians = ([_resampled_medians(side, generator) for side in pair] for pair in pairs)
    ratios = np.stack([ours / theirs for ours, theirs in drawn_medians])
    chosen = generator.integers(0, len(rounds), size=ratios.shape)
    return _interval(np.median(np.take_along_axis(ratios, chosen, axis=0), axis=0))


def ratio_of_rounds(rounds: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]]) -> float:
    """Median over rounds of the ratio of medians; `ratio_interval_of_rounds` gives its interval.

    A machine that slows down between rounds does not affect it, because both sides of a round run side by side.
    """
    return median([median(ours) / median(theirs) for ours, theirs in zip(rounds, baseline, strict=True)])


def mann_whitney(samples: Sequence[float], baseline: Sequence[float]) -> float | None:
    """Two-sided p-value that neither side tends to be larger (Mann-Whitney U); None if either is empty."""
    if not len(samples) or not len(baseline):
        return None
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(samples, baseline, alternative="two-sided").pvalue)


def _resampled_medians(samples: Sequence[float], generator: np.random.Generator) -> Any:
    array = np.asarray(samples, dtype=float)
    return np.median(array[generator.integers(0, len(array), size=(len(array), RESAMPLES))], axis=0)


def _interval(resampled: Any) -> Interval:
    """The middle 95 % of resampled values."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(float(low), float(high))
