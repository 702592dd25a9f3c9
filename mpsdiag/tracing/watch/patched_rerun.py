"""Patches: run a pass again with the faults found so far made finite, so that those behind them come to light."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mpsdiag.sdpa.watch import SDPA
from mpsdiag.tracing.watch.operations import SOFTMAX, TorchCall
from mpsdiag.tracing.watch.origin_search import Terminal
from mpsdiag.tracing.watch.replay import fully_masked_rows
from mpsdiag.tracing.watch.tensors import impurity, mapped


@dataclass(frozen=True)
class Patches:
    """What is made finite in a pass: outputs by their operation's number, fully masked rows, weights and inputs."""

    outputs: frozenset[int] = frozenset()
    attention: bool = False
    given: bool = False

    def __bool__(self) -> bool:
        return bool(self.outputs) or self.attention or self.given

    def behind(self, terminal: Terminal, causes: set[str]) -> Patches:
        """With one more fault made finite, so that a pass shows what lies behind it."""
        if terminal.kind in ("weight", "batch"):
            return replace(self, given=True)
        of_attention = "dead_rows" in causes or (causes == {"bad_mask"} and terminal.kind == "nan")
        return replace(self, outputs=self.outputs | {terminal.event.index}, attention=self.attention or of_attention)

    def apply(self, index: int, call: TorchCall, result: Any, *, in_place: bool) -> Any:
        """The result of an operation, made finite where that is wanted."""
        if index in self.outputs:
            return mapped(result, partial(made_finite, in_place=in_place))
        if self.attention and call.operation in (SDPA, *SOFTMAX, "sub") and isinstance(result, Tensor):
            dead = fully_masked_rows(call, result)
            if dead is not None:
                return torch.where(dead.unsqueeze(-1), torch.nan_to_num(result, nan=0.0), result)
        return result


def made_finite(value: Any, *, in_place: bool = False) -> Any:
    """A tensor with zeros for what is not finite; anything else as it is."""
    if not isinstance(value, Tensor) or not impurity(value):
        return value
    if in_place:
        with torch.no_grad():
            return value.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    return torch.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0)
