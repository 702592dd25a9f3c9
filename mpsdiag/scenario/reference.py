"""The correct numbers: the same weights on the CPU in float64, and the bound around them."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import PreTrainedModel

from mpsdiag.emulation.mode import suspended
from mpsdiag.errors import BadInput
from mpsdiag.fixes.anatomy import runs_eager
from mpsdiag.fixes.model import apply, put_in_place
from mpsdiag.fixes.process import install
from mpsdiag.inputs.models import attention_for
from mpsdiag.inputs.modules import copy_to_cpu, over_tensors, to_cpu, to_float64
from mpsdiag.inputs.tasks import ALL_TASKS, Task
from mpsdiag.sdpa.float64 import WideSoftmax, allowed_error, largest_error

Batch = dict[str, Tensor]
CAUSAL = ALL_TASKS["text-generation"]


@dataclass(frozen=True)
class Reference:
    """Float64 CPU outputs per batch (sequences, positions, features), the bounds, and stock CPU losses."""

    logits: list[Tensor]
    bound_real: float
    bound_all: float
    losses: list[float]
    real: list[Tensor]
    """Per batch, (sequences, positions) bool: the positions that count."""


@dataclass(frozen=True)
class Distances:
    """Largest differences from the reference, at real positions and at all positions; NaN counts as infinite."""

    real: float
    everywhere: float


def reference(model: PreTrainedModel, batches: Sequence[Batch], trainer: Any, task: Task = CAUSAL) -> Reference:
    """Compute the reference from a copy of the model with its present weights, on the CPU and outside any emulation.

    `trainer` is the one whose losses are to be matched: it knows which tokens the mean is over. `task` says what is
    compared, and where.
    """
    with stock_cpu():
        stock = cpu_copy(model)
        losses = [stock_loss(stock, to_cpu(batch), trainer) for batch in batches]
        rounded = [_output(stock, batch, task) for batch in batches]
        with put_in_place(stock, "eager"), WideSoftmax(rounded=runs_eager(model)):
            eager = [_output(stock, batch, task) for batch in batches]
        exact = cast("PreTrainedModel", to_float64(stock))
        with WideSoftmax():
            logits = [_output(exact, batch, task) for batch in batches]
    masks = [task.real(batch) for batch in batches]
    bound_real = max(
        allowed_error(right[mask], plain.dtype, [largest_error(plain, right, mask)])
        for plain, right, mask in zip(eager, logits, masks, strict=True)
    )
    # Eager gives fully masked rows another value, so their rounding is judged by stock CPU SDPA, which gives zeros.
    everywhere = (
        allowed_error(right, plain.dtype, [largest_error(plain, right)])
        for plain, right in zip(rounded, logits, strict=True)
    )
    bound_all = max(bound_real, *everywhere)
    return Reference(logits=logits, bound_real=bound_real, bound_all=bound_all, losses=losses, real=masks)


def compare(logits: Sequence[Tensor], truth: Reference) -> Distances:
    """How far the logits of a run, (sequences, positions, vocabulary) a batch, are from the reference for it."""
    pairs = list(zip(logits, truth.logits, truth.real, strict=True))
    return Distances(
        real=max(_distance(mine, right, real) for mine, right, real in pairs),
        everywhere=max(_distance(mine, right) for mine, right, _ in pairs),
    )


@contextmanager
def stock_cpu() -> Iterator[None]:
    """Inside this block the CPU computes without an emulation, an installed mode and gradients."""
    with suspended(), install("sdpa"), torch.no_grad():
        yield


def stock_loss(model: PreTrainedModel, batch: Batch, trainer: Any) -> float:
    """The loss of a batch as the Trainer's evaluation gets it from the model.

    From transformers 4.57 on, evaluation divides by the number of labels of the batch, not of shifted labels.
    """
    own_loss = getattr(trainer, "compute_loss_func", None)
    if own_loss is not None:
        inputs = dict(batch)
        labels = inputs.pop("labels")
        return float(own_loss(model(**inputs), labels))
    extra = {}
    if Version(transformers.__version__) >= Version("4.57") and trainer.model_accepts_loss_kwargs:
        extra["num_items_in_batch"] = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    return float(model(**batch, **extra).loss)


def real_positions(batch: Batch) -> Tensor:
    """(sequences, positions) bool on the CPU: the token is not padding."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"], dtype=torch.bool).cpu() if mask is None else mask.bool().cpu()


def cpu_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy on the CPU with stock SDPA attention, in evaluation mode and the same dtype; see `copy_to_cpu`."""
    twin = copy_to_cpu(model)
    # The copy shares nothing with the original's fix; what attention it runs is decided here.
    apply(twin, attention_for(twin, "sdpa"))
    return cast("PreTrainedModel", twin)


def _output(model: PreTrainedModel, batch: Batch, task: Task) -> Tensor:
    """The part of a model's output that is compared; pictures are in the model's dtype."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    inputs = over_tensors(inputs, lambda t: t.to("cpu", model.dtype if t.is_floating_point() else None))
    return require_output(task.compared(model(**inputs)), model)


def require_output(found: Tensor | None, model: Any) -> Tensor:
    """What is compared of an output; BadInput if there is nothing."""
    if found is None:
        raise BadInput(f"{type(model).__name__} returns neither logits nor hidden states to compare.")
    return found


def _distance(mine: Tensor, right: Tensor, positions: Tensor | None = None) -> float:
    error = largest_error(mine, right, positions)
    return math.inf if math.isnan(error) else error
