"""After the fact: which attention is set, what reaches SDPA, and whether the logits are finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mpsdiag.fixes.anatomy import attention_of
from mpsdiag.sdpa import count_dead_rows


@dataclass(frozen=True)
class Verification:
    """What one evaluation forward showed.

    Attributes:
        attention: The attention set, by model class.
        sdpa_calls: Calls that reached `F.scaled_dot_product_attention` of torch.
        masked_calls: Those of them with a mask.
        dead_rows: Rows without a key in the masks of those calls, a row of a broadcast mask counted once.
        nonfinite: Logits (or other first output) that are NaN or infinite.
        values: How many logits there are.
    """

    attention: Mapping[str, str | None]
    sdpa_calls: int
    masked_calls: int
    dead_rows: int
    nonfinite: int
    values: int

    @property
    def ok(self) -> bool:
        """No dead row reaches SDPA, and all logits are finite."""
        return self.dead_rows == 0 and self.nonfinite == 0 and self.values > 0


class _Watch(TorchFunctionMode):
    """Counts what reaches torch's own SDPA, behind whatever stands in front of it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.masked = 0
        self.dead = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        options = kwargs or {}
        # By name: a patched F.scaled_dot_product_attention makes a test of identity fail.
        if getattr(func, "__name__", "") == "scaled_dot_product_attention":
            self.calls += 1
            mask = args[3] if len(args) > 3 else options.get("attn_mask")
            if mask is not None:
                self.masked += 1
                self.dead += count_dead_rows(mask)
        return func(*args, **options)


def verify(model: nn.Module, batch: Mapping[str, Any]) -> Verification:
    """Run one evaluation forward without gradients and say what reached SDPA and what came out.

    Args:
        model: Put back into training mode afterwards if it was in it.
        batch: Keyword arguments of the model, on its device.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), _Watch() as watch:
            output = model(**batch)
    finally:
        model.train(training)
    logits = _logits(output)
    return Verification(
        attention=attention_of(model),
        sdpa_calls=watch.calls,
        masked_calls=watch.masked,
        dead_rows=watch.dead,
        nonfinite=int((~logits.isfinite()).sum()),
        values=logits.numel(),
    )


def _logits(output: Any) -> Tensor:
    named = getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output
    return next(value for value in values if isinstance(value, Tensor) and value.is_floating_point())
