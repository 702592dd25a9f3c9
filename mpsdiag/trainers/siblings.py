"""Variants of the Trainer that separate, in a matrix, where a NaN comes from. They act on every device."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer

from mpsdiag.trainers.cpu_losses import over_tensors
from mpsdiag.trainers.mps_safe import MPSSafeTrainer, Step


class CpuLossTrainer(MPSSafeTrainer):
    """Computes the evaluation loss on the CPU and does nothing else: logits that are NaN stay NaN."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"always": True, "on_nonfinite_logits": "keep", **kwargs})


class CpuForwardTrainer(MPSSafeTrainer):
    """Evaluates every batch on a CPU copy of the model, made once per evaluation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"always": True, **kwargs})

    def _step(self, model: Any, inputs: dict[str, Any], loss_only: bool, ignore_keys: Any) -> Step:  # noqa: ARG002 - the copy is evaluated
        return self.step_on_cpu(inputs, loss_only, ignore_keys)


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
        return (loss.detach(), _detached(outputs)) if return_outputs else loss.detach()


def _detached(outputs: Any) -> Any:
    return over_tensors(outputs, lambda tensor: tensor.detach())
