"""The loss and the logits of what a model returns (an object, a mapping, a tuple), and means of batch losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def loss_of(output: Any) -> Tensor | None:
    """The loss where transformers' Trainer looks for it: by name, or first in a tuple. None if there is none.

    The first of a tuple is a loss if it is one number: without labels it is the logits.
    """
    if isinstance(output, tuple | list):
        first = output[0] if output else None
        return first if isinstance(first, Tensor) and first.numel() == 1 else None
    loss = _named(output, "loss")
    return loss if isinstance(loss, Tensor) else None


def logits_of(output: Any) -> Tensor | None:
    """The logits of a model: by name, the first of a tuple but for its loss, or the output itself; None if none."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list):
        rest = output[1:] if loss_of(output) is not None else output[:1]
        return next((item for item in rest if isinstance(item, Tensor)), None)
    logits = _named(output, "logits")
    return logits if isinstance(logits, Tensor) else None


def embeddings_of(output: Any) -> Tensor | None:
    """The embeddings of a model without a head: its pooled ones, or its hidden states; None if it has none of these."""
    found = (_named(output, name) for name in ("sentence_embedding", "token_embeddings", "last_hidden_state"))
    return next((value for value in found if isinstance(value, Tensor)), None)


def _named(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def mean(losses: Sequence[float], sizes: Sequence[int]) -> float:
    """The mean of batch losses over sequences, as the Trainer takes it."""
    return sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)


def filtered_mean(losses: Sequence[float], sizes: Sequence[int]) -> float:
    """The eval_loss of a transformers that filters evaluation: non-finite losses are left out unless all are."""
    kept = [(loss, size) for loss, size in zip(losses, sizes, strict=True) if math.isfinite(loss)]
    if not kept:
        return mean(losses, sizes)
    return mean([loss for loss, _ in kept], [size for _, size in kept])
