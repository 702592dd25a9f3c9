"""Means of batch losses over sequences: as the Trainer takes them, and as transformers 5.23 prints them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean(losses: Sequence[float], sizes: Sequence[int]) -> float:
    """The mean of batch losses over sequences, as the Trainer takes it.

    Args:
        losses: Mean loss of each batch.
        sizes: Sequences in each batch.
    """
    return sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)


def filtered_mean(losses: Sequence[float], sizes: Sequence[int]) -> float:
    """The eval_loss that transformers 5.23 prints by default: non-finite losses are left out unless all are.

    Args:
        losses: Mean loss of each batch.
        sizes: Sequences in each batch.
    """
    kept = [(loss, size) for loss, size in zip(losses, sizes, strict=True) if math.isfinite(loss)]
    if not kept:
        return mean(losses, sizes)
    return mean([loss for loss, _ in kept], [size for _, size in kept])
