"""Medians, spreads, intervals and tests of durations. Inputs are raw samples in seconds; pure functions."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000
NOISY = 0.10
"""Interquartile range over median above which a sample shows the machine rather than the work."""


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


def bootstrap_interval(
    samples: Sequence[float],
    statistic: Callable[..., Any] = np.median,
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval | None:
    """Percentile bootstrap interval of a statistic of the samples; None below two samples."""
    if len(samples) < 2:
        return None
    return _bootstrap((np.asarray(samples, dtype=float),), statistic, confidence, seed)


def ratio_interval(
    samples: Sequence[float], baseline: Sequence[float], *, confidence: float = CONFIDENCE, seed: int = 0
) -> Interval | None:
    """Bootstrap interval of median(samples) / median(baseline); None if either has fewer than two."""
    if len(samples) < 2 or len(baseline) < 2 or min(baseline) <= 0:
        return None
    arrays = (np.asarray(samples, dtype=float), np.asarray(baseline, dtype=float))
    return _bootstrap(arrays, _ratio_of_medians, confidence, seed)


def ratio_interval_of_rounds(
    rounds: Sequence[Sequence[float]],
    baseline: Sequence[Sequence[float]],
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval | None:
    """Bootstrap interval of the median ratio when samples come in rounds, one process each.

    Samples of one process are alike (its memory layout, its place in the day), so pooling them pretends to
    know more than one does. Each resample draws rounds first, the same ones of both sides since they ran side
    by side, and then samples within each: a two-stage cluster bootstrap (Davison and Hinkley 1997, 3.8).
    """
    if not rounds or len(rounds) != len(baseline) or not all(rounds) or not all(baseline):
        return None
    if len(rounds) == 1:
        return ratio_interval(rounds[0], baseline[0], confidence=confidence, seed=seed)
    generator = np.random.default_rng(seed)
    pairs = zip(rounds, baseline, strict=True)
    drawn_medians = ([_resampled_medians(side, generator) for side in pair] for pair in pairs)
    ratios = np.stack([ours / theirs for ours, theirs in drawn_medians])
    chosen = generator.integers(0, len(rounds), size=(len(rounds), RESAMPLES))
    drawn = np.median(np.take_along_axis(ratios, chosen, axis=0), axis=0)
    tail = (1 - confidence) / 2
    return _ordered(*np.quantile(drawn, [tail, 1 - tail]))


def ratio_of_rounds(rounds: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]]) -> float:
    """Median over rounds of the ratio of medians: what `ratio_interval_of_rounds` is the interval of.

    A machine that gets slow from one round to the next does not touch it, since both sides of a round ran side by side.
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


def _ratio_of_medians(ours: Any, theirs: Any, axis: int = -1) -> Any:
    return np.median(ours, axis=axis) / np.median(theirs, axis=axis)


def _bootstrap(data: tuple[Any, ...], statistic: Callable[..., Any], confidence: float, seed: int) -> Interval:
    from scipy.stats import bootstrap

    # scipy 1.15 renamed the argument; the old name works there for now, the new one not before.
    seeding = "rng" if "rng" in inspect.signature(bootstrap).parameters else "random_state"
    options: Any = {"method": "percentile", "vectorized": True, seeding: np.random.default_rng(seed)}
    result = bootstrap(data, statistic, n_resamples=RESAMPLES, confidence_level=confidence, **options)
    return _ordered(*result.confidence_interval)


def _ordered(low: Any, high: Any) -> Interval:
    """An interval whose ends are in order: between equal values the interpolation of a quantile may be off by a bit."""
    return Interval(float(low), max(float(low), float(high)))
