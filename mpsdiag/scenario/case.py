"""One point to look at: which model, data, attention, trainer, padding and device; and what came out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mpsdiag.emulation import Emulation
from mpsdiag.findings import Blame, Exposure

CaseStatus = Literal["ok", "nan", "wrong"]


@dataclass(frozen=True)
class Case:
    """A scenario, fully resolved. Lengths are in tokens, `batch_size` in sequences."""

    model: str = "tiny-gpt2"
    dataset: str = "synthetic"
    eval_dataset: str | None = None
    attention: str = "sdpa"
    trainer: str = "standard"
    padding_side: str = "left"
    dtype: str = "float32"
    device: str = "cpu"
    emulation: Emulation | None = None
    batch_size: int = 4
    max_length: int = 512
    pad_to_multiple_of: int | None = None
    train_steps: int = 3
    eval_batches: int = 4
    seed: int = 0
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class FirstNonfinite:
    """The first non-finite value of an evaluation: `layer` counts decoder layers from 0, None outside them."""

    batch: int
    layer: int | None
    module: str
    operation: str
    rows: int


@dataclass
class Outcome:
    """What a scenario gave. Losses are mean negative log-likelihoods in nats; rows are query rows."""

    status: CaseStatus
    reason: str
    train_losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    eval_losses: list[float] = field(default_factory=list)
    eval_loss: float = float("nan")
    stock_eval_loss: float = float("nan")
    reference_eval_loss: float = float("nan")
    reference_first_train_loss: float = float("nan")
    nonfinite_batches: int = 0
    dead_rows: int = 0
    sdpa_calls: int = 0
    noncontiguous_dead_calls: int = 0
    exposure: Exposure | None = None
    blame: Blame | None = None
    first_nonfinite: FirstNonfinite | None = None
    nonfinite_rows: list[list[int]] = field(default_factory=list)
    max_abs_logit_diff: float | None = None
    bound: float | None = None
    exact: bool | None = None
    loss_moved_by: float | None = None
    real_tokens: int = 0
    pad_tokens: int = 0
    missing_weights: str | None = None
    """A sentence about weights that the checkpoint lacks, if any."""
