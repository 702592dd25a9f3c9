"""Traced training steps: a cheap pass in every step, and a detailed one in the first non-finite step."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mpsdiag.errors import BadInput
from mpsdiag.inputs.modules import in_mode, loss_of
from mpsdiag.tracing.causes.indices import Indices
from mpsdiag.tracing.origin import Origin, Phase
from mpsdiag.tracing.passes.divergence import OF_TRAINING, Trajectory, after_the_optimizer, exploded_norm, or_divergence
from mpsdiag.tracing.passes.forward import TracedRun, explain_forward, own_sentence
from mpsdiag.tracing.passes.gradients import explain_backward
from mpsdiag.tracing.watch.calls import TorchCall
from mpsdiag.tracing.watch.model_state import Repeat, did_not_repeat, only_unwatched
from mpsdiag.tracing.watch.tensors import fresh
from mpsdiag.tracing.watch.tracer import flag_of, is_up, numbers

LEARNING_RATE = 5e-5
"""The default of transformers' TrainingArguments."""


def trace_training(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    learning_rate: float = LEARNING_RATE,
    *,
    steps: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> TracedRun:
    """Train with AdamW, and stop at the first step with a non-finite value; the weights are put back at the end."""
    if not any(weight.requires_grad for weight in model.parameters()):
        raise BadInput("No weight of the model requires a gradient, so there is nothing to train. Unfreeze some.")
    indices = Indices(model)
    for batch in batches:
        if (outside := indices.explain(batch)) is not None:
            return TracedRun(origin=outside)
    with _weights_put_back(model) as initial, in_mode(model, training=True, grad=True):
        steps = steps or len(batches)
        planned = itertools.islice(itertools.cycle(batches), steps)
        training = _Training(model, learning_rate, initial)
        origin, call = training.run(planned, lambda words: progress(f"{words} of {steps}"))
    return TracedRun(training.trajectory.losses, training.trajectory.grad_norms, origin=origin, call=call)


class _Training:
    """A training run, starting from the `initial` weights."""

    def __init__(self, model: nn.Module, learning_rate: float, initial: Mapping[str, Tensor]) -> None:
        self._model, self._initial = model, initial
        self._trained = [weight for weight in model.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=learning_rate, weight_decay=0.0)
        self._sums: list[Tensor] = []  # of the weights after the last step
        self.trajectory = Trajectory(learning_rate)

    def run(
        self, batches: Iterable[Mapping[str, Any]], progress: Callable[[str], None]
    ) -> tuple[Origin | None, TorchCall | None]:
        """Run the steps up to the first non-finite one; the finding in it."""
        for step, batch in enumerate(batches):
            progress(f"training step {step + 1}")
            repeat = Repeat(self._model)
            try:
                bad = self._step(batch)
            except IndexError:  # In the forward: the detailed pass shows which index is out of range.
                return explain_forward(self._model, batch, repeat)
            if bad:
                origin, call = self._explain(batch, repeat)
                if origin is not None:
                    return origin, call
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            self._sums = [weight.detach().sum(dtype=torch.float32) for weight in self._trained]
        # No further step has read the weights that the last one made.
        spoilt = not all(map(math.isfinite, *numbers(self._sums)))
        return (self._spoilt_by_the_optimizer() if spoilt else None), None

    def _step(self, batch: Mapping[str, Any]) -> bool:
        """Forward and backward; whether anything, including the initial weights of the step, may be non-finite."""
        with own_sentence(self._model, batch):
            loss, flags = self._forward_and_backward(batch)
        for weight in self._trained:
            if weight.grad is not None and weight.grad.is_sparse:
                weight.grad = weight.grad.to_dense()
        norm = torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        up, sums, own = numbers(flags, self._sums, [loss, norm])
        self.trajectory.note(*own)
        return any(map(is_up, up)) or not all(map(math.isfinite, [*sums, *own]))

    def _forward_and_backward(self, batch: Mapping[str, Any]) -> tuple[Tensor, list[Tensor]]:
        """The loss, as transformers' Trainer takes it where each device gives one, and the flag of the output."""
        output = self._model(**fresh(batch))
        loss, flag = loss_of(output), flag_of(output)
        if loss is None:
            raise BadInput(f"{type(self._model).__name__} gives no loss for this batch: add labels to train on it.")
        torch.autograd.backward(loss.mean())
        return loss.mean(), [] if flag is None else [flag]

    def _spoilt_by_the_optimizer(self) -> Origin | None:
        return after_the_optimizer(self._model, self._optimizer, self.trajectory, self._initial)

    def _explain(self, batch: Mapping[str, Any], repeat: Repeat) -> tuple[Origin | None, TorchCall | None]:
        """Examine a suspicious step in detail: weights, forward, backward, in this order."""
        model, trajectory = self._model, self.trajectory
        if trajectory.step > 0 and (origin := self._spoilt_by_the_optimizer()):
            return origin, None
        origin, call = explain_forward(model, batch, repeat)
        if origin is None:
            origin = explain_backward(model, batch, repeat) or exploded_norm(model, trajectory)
        if origin is None:
            return self._unexplained(batch, repeat), None
        if trajectory.step > 0 and origin.cause in OF_TRAINING and self._finite_at_first(batch, repeat):
            origin = or_divergence(model, origin, trajectory, self._initial)
        return origin, call

    def _finite_at_first(self, batch: Mapping[str, Any], repeat: Repeat) -> bool:
        """The control: the same batch with the initial weights."""
        now = {name: weight.detach().clone() for name, weight in self._model.named_parameters()}
        _load(self._model, self._initial)
        finite = self._finite(batch, repeat)
        _load(self._model, now)
        return finite

    def _unexplained(self, batch: Mapping[str, Any], repeat: Repeat) -> Origin | None:
        """For a step that was finite in detail: None if it really was, otherwise what makes it non-finite again."""
        trajectory = self.trajectory
        finite = [math.isfinite(values[-1]) for values in (trajectory.losses, trajectory.grad_norms)]
        if all(finite):
            return None  # Only the cheap pass saw it: one of its own sums overflowed.
        if not self._finite(batch, repeat):
            return only_unwatched(self._model)
        phase: Phase = "backward" if finite[0] else "forward"
        what = f"step {trajectory.step}"
        return did_not_repeat(self._model, what, operation="step", phase=phase, **trajectory.evidence())

    def _finite(self, batch: Mapping[str, Any], repeat: Repeat) -> bool:
        """Whether loss and gradients of a batch are finite."""
        repeat.again()
        self._model.zero_grad(set_to_none=True)
        loss, flags = self._forward_and_backward(batch)
        gradients = [weight.grad.sum(dtype=torch.float32) for weight in self._trained if weight.grad is not None]
        up, values = numbers(flags, [loss, *gradients])
        return not any(map(is_up, up)) and all(map(math.isfinite, values))


@contextmanager
def _weights_put_back(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Save weights, buffers and gradients, and restore them; gives the saved weights."""
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
