"""Training steps, traced: the cheap pass in every step, in detail the first step that is not finite."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mpsdiag.errors import BadInput
from mpsdiag.inputs.outputs import loss_of
from mpsdiag.tracing.origin import Origin, Phase
from mpsdiag.tracing.passes.divergence import (
    OF_TRAINING,
    Trajectory,
    after_the_optimizer,
    exploded_norm,
    or_divergence,
)
from mpsdiag.tracing.passes.forward import explain_forward
from mpsdiag.tracing.passes.gradients import explain_backward
from mpsdiag.tracing.passes.indices import Indices
from mpsdiag.tracing.passes.model_inputs import own_sentence
from mpsdiag.tracing.watch.flags import Flags
from mpsdiag.tracing.watch.model_state import Repeat, did_not_repeat, in_mode, only_unwatched
from mpsdiag.tracing.watch.operations import TorchCall

LEARNING_RATE = 5e-5
"""That of transformers' TrainingArguments."""


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW or plain gradient descent, and the norm gradients are clipped to (None: not at all)."""

    learning_rate: float = LEARNING_RATE
    optimizer: str = "adamw"
    max_grad_norm: float | None = 1.0

    def make(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=self.learning_rate)
        return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=0.0)


@dataclass(frozen=True)
class TracedTraining:
    """Losses and gradient norms of the steps that ran, and the origin if a step was not finite."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    origin: Origin | None = None
    call: TorchCall | None = None


def trace_training(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    recipe: Recipe | None = None,
    *,
    steps: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> TracedTraining:
    """Train, and stop at the first step with a non-finite value; the weights are put back at the end.

    Raises:
        BadInput: A batch without labels; nothing to train.
        CannotDecide: A step itself fails.
    """
    recipe = recipe or Recipe()
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise BadInput(
            "No weight of the model wants a gradient, so there is nothing to train. Unfreeze some."
        )
    indices = Indices(model)
    for batch in batches:
        if (outside := indices.explain(batch)) is not None:
            return TracedTraining(origin=outside)
    trajectory = Trajectory(recipe.learning_rate)
    with _weights_put_back(model) as initial, in_mode(model, training=True, grad=True):
        planned = itertools.islice(itertools.cycle(batches), steps or len(batches))
        origin, call = _train(model, planned, recipe, trained, trajectory, initial, progress)
    return TracedTraining(trajectory.losses, trajectory.grad_norms, origin, call)


def _train(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    recipe: Recipe,
    trained: Sequence[nn.Parameter],
    trajectory: Trajectory,
    initial: Mapping[str, Tensor],
    progress: Callable[[str], None],
) -> tuple[Origin | None, TorchCall | None]:
    """The steps, up to the first that is not finite; what is found in it."""
    flags, optimizer = Flags(model), recipe.make(trained)
    for step, batch in enumerate(batches):
        progress(f"training step {step + 1}")
        repeat = Repeat(model)
        try:
            bad = _step(model, batch, recipe, trained, flags, trajectory)
        except IndexError:  # In the forward: the pass in detail says which index points nowhere.
            flags.read()
            return explain_forward(model, batch, repeat)
        if bad:
            origin, call = _explain(model, batch, repeat, trajectory, initial, optimizer)
            if origin is not None:
                return origin, call
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for weight in trained:
            flags.note(weight)
    spoilt = flags.read().suspicious  # By the last step: no further one has read what it made of the weights.
    return (after_the_optimizer(model, optimizer, trajectory, initial) if spoilt else None), None


def _step(
    model: nn.Module,
    batch: Mapping[str, Any],
    recipe: Recipe,
    trained: Sequence[nn.Parameter],
    flags: Flags,
    trajectory: Trajectory,
) -> bool:
    """Forward and backward; whether anything, the weights it began with included, may be non-finite."""
    with own_sentence(model, batch):
        loss = loss_of(flags.forward(batch))
        if loss is None:
            raise BadInput(f"{type(model).__name__} gives no loss for this batch: add labels to train on it.")
        torch.autograd.backward(loss.mean())  # As transformers' Trainer, for a loss of each device.
    for weight in trained:
        if weight.grad is not None and weight.grad.is_sparse:
            weight.grad = weight.grad.to_dense()
    bound = recipe.max_grad_norm if recipe.max_grad_norm is not None else float("inf")
    norm = torch.nn.utils.clip_grad_norm_(trained, bound)
    reading = flags.read(loss.mean(), norm)
    trajectory.note(*reading.extra)
    return reading.suspicious


def _explain(
    model: nn.Module,
    batch: Mapping[str, Any],
    repeat: Repeat,
    trajectory: Trajectory,
    initial: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> tuple[Origin | None, TorchCall | None]:
    """The step that was noticed, in detail: weights, forward, backward, in this order."""
    if trajectory.step > 0 and (origin := after_the_optimizer(model, optimizer, trajectory, initial)):
        return origin, None
    origin, call = explain_forward(model, batch, repeat)
    if origin is None:
        origin = explain_backward(model, batch, repeat) or exploded_norm(model, trajectory)
    if origin is None:
        return _unexplained(model, batch, repeat, trajectory), None
    if trajectory.step > 0 and origin.cause in OF_TRAINING and _finite_with(model, batch, repeat, initial):
        origin = or_divergence(model, origin, trajectory, initial)
    return origin, call


def _finite_with(
    model: nn.Module, batch: Mapping[str, Any], repeat: Repeat, initial: Mapping[str, Tensor]
) -> bool:
    """The control: the same batch with the weights that training began with."""
    now = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    _load(model, initial)
    finite = _finite(model, batch, repeat)
    _load(model, now)
    return finite


def _unexplained(
    model: nn.Module, batch: Mapping[str, Any], repeat: Repeat, trajectory: Trajectory
) -> Origin | None:
    """A step that came out finite in detail: None if it was, or what it takes to be non-finite again."""
    finite = [math.isfinite(values[-1]) for values in (trajectory.losses, trajectory.grad_norms)]
    if all(finite):
        return None  # Only the cheap pass thought so: a sum of its own overflowed.
    if not _finite(model, batch, repeat):
        return only_unwatched(model)
    phase: Phase = "backward" if finite[0] else "forward"
    return did_not_repeat(
        model, f"step {trajectory.step}", operation="step", phase=phase, evidence=trajectory.evidence()
    )


def _finite(model: nn.Module, batch: Mapping[str, Any], repeat: Repeat) -> bool:
    """Whether loss and gradients of a batch are finite."""
    repeat.again()
    flags = Flags(model)
    model.zero_grad(set_to_none=True)
    loss = loss_of(flags.forward(batch))
    if loss is None:  # There was one a moment ago, with other weights.
        return False
    torch.autograd.backward(loss.mean())
    for weight in model.parameters():
        if weight.grad is not None:
            flags.note(weight.grad)
    return not flags.read(loss.mean()).suspicious


@contextmanager
def _weights_put_back(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Keep weights, buffers and gradients, and put them back; gives the weights as they were."""
    initial = {name: weight.detach().cpu().clone() for name, weight in model.named_parameters()}
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    repeat = Repeat(model)
    for weight in model.parameters():
        weight.grad = None
    try:
        yield initial
    finally:
        _load(model, initial)
        repeat.again()
        for name, weight in model.named_parameters():
            weight.grad = gradients[name]


def _load(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(weights[name])
