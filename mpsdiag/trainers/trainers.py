"""The Trainer variants by the names of the contract."""

from __future__ import annotations

from typing import Final

from transformers import Trainer

from mpsdiag.trainers.mps_safe import MPSSafeTrainer
from mpsdiag.trainers.siblings import CpuForwardTrainer, CpuLossTrainer, GradEvalTrainer

TRAINERS: Final[dict[str, type[Trainer]]] = {
    "standard": Trainer,
    "mps_safe": MPSSafeTrainer,
    "cpu_loss": CpuLossTrainer,
    "cpu_forward": CpuForwardTrainer,
    "grad_eval": GradEvalTrainer,
}
