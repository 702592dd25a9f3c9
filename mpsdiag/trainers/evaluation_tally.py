"""What one evaluation has seen: non-finite batches, why, and the CPU copy of the model if it needed one."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from mpsdiag.inputs.cpu_copy import copy_to_cpu
from mpsdiag.inputs.nonfinite import Cause

if TYPE_CHECKING:
    from torch import Tensor, nn


class EvaluationTally:
    """Counts of one evaluation. The copy of the model lives as long as this does: one evaluation."""

    def __init__(self) -> None:
        self.batches = 0
        self.on_cpu = 0
        self.causes: Counter[Cause] = Counter()
        self._bad: Tensor | int = 0
        self._twin: nn.Module | None = None

    def cpu_model(self, model: nn.Module) -> nn.Module:
        """The copy of the model on the CPU, made at the first call."""
        if self._twin is None:
            self._twin = copy_to_cpu(model)
        return self._twin

    def note(self, loss: Tensor | None) -> None:
        """Count a batch by its final loss. Counts stay on the device, so that nothing waits for it."""
        import torch

        if loss is None:
            return
        self.batches += 1
        self._bad = self._bad + (~torch.isfinite(loss.detach())).any().long()

    def metrics(self, prefix: str) -> dict[str, Any]:
        """The counts as metrics: `eval_nonfinite_batches`, and `eval_cpu_forward_batches` if there were any."""
        found: dict[str, Any] = {}
        if self.batches:
            found[f"{prefix}_nonfinite_batches"] = int(self._bad)
        if self.on_cpu:
            found[f"{prefix}_cpu_forward_batches"] = self.on_cpu
        return found
