"""The loss and the logits of what a model returns: an object with attributes, a mapping, or a tuple."""

from __future__ import annotations

from collections.abc import Mapping
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


def _named(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
