"""Variants of the Trainer that separate, in a matrix, where a NaN comes from, by the names of the contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from transformers import Trainer

from mpsdiag.inputs.cpu_copy import over_tensors
from mpsdiag.trainers.mps_safe import MPSSafeTrainer, Step


class CpuLossTrainer(MPSSafeTrainer):
    """Computes the evaluation loss on the CPU and does nothing else: logits that are NaN stay NaN."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"always": True, "on_nonfinite_logits": "keep", **kwargs})


class CpuForwardTrainer(MPSSafeTrainer):
    """Evaluates every batch on a CPU copy of the model, made once per evaluation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"always": True, **kwargs})

    def _mps_safe_step(self, model: Any, inputs: Any, stock: Callable[[Any], Step]) -> Step:
        del model, inputs
        return self._mps_safe_step_on_cpu(stock)


class GradEvalTrainer(Trainer):
    """Evaluates with gradients enabled, which keeps SDPA of torch 2.5 to 2.8 off its fast path on MPS.

    The graph of a batch is kept until its loss is known. torch leaves the fast path only where query, key or value
    require a gradient: below the first trainable layer of a frozen model nothing changes.
    """

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As the stock one; in evaluation under `torch.enable_grad`, with the results detached."""
        if model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with torch.enable_grad():
            loss, outputs = super().compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        if not return_outputs:
            return loss.detach()
        return loss.detach(), over_tensors(outputs, lambda tensor: tensor.detach())


TRAINERS: Final[dict[str, type[Trainer]]] = {
    "standard": Trainer,
    "mps_safe": MPSSafeTrainer,
    "cpu_loss": CpuLossTrainer,
    "cpu_forward": CpuForwardTrainer,
    "grad_eval": GradEvalTrainer,
}
