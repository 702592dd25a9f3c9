"""Explains a non-finite forward, backward or optimizer step of a watched process by running it again."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mpsdiag.errors import first_line
from mpsdiag.tracing.causes.indices import Indices
from mpsdiag.tracing.origin import REMEDIES, Cause, Origin, Phase
from mpsdiag.tracing.passes.divergence import OF_TRAINING, Trajectory, after_the_optimizer, or_divergence
from mpsdiag.tracing.passes.forward import explain_forward
from mpsdiag.tracing.passes.gradients import backward_of, explain_backward
from mpsdiag.tracing.process.forwards import WatchedForward
from mpsdiag.tracing.process.unread import Unread, Values
from mpsdiag.tracing.watch.model_state import device_label, did_not_repeat, only_unwatched, unexplained
from mpsdiag.tracing.watch.tensors import facts, impurity, judged_in

NOT_REPEATED = "cannot be run again to examine it"


def of_forward(forward: WatchedForward, optimizers: Iterable[torch.optim.Optimizer], trajectory: Trajectory) -> Origin:
    """Why a forward is non-finite: the step before it, the batch, or an operation in it."""
    if forward.step and (origin := of_step(forward.model, optimizers, trajectory)) is not None:
        return origin
    if forward.lost:
        return _not_repeated(forward)
    try:
        with forward.again() as (model, batch):
            if (outside := Indices(model).explain(batch)) is not None:
                return outside
            origin, _ = explain_forward(model, batch, forward.repeat)
            if origin is None:
                return only_unwatched(model) if forward.comes_out_bad() else did_not_repeat(model, "a forward")
    except Exception as problem:  # noqa: BLE001 - whatever the model raises now, the script did not
        return _not_repeated(forward, first_line(problem))
    if forward.step and origin.cause in OF_TRAINING:
        return or_divergence(model, origin, trajectory, {})
    return origin


def of_backward(unread: Unread, values: Values, trajectory: Trajectory) -> Origin | None:
    """Why gradients are non-finite although all forwards are finite; None if they are finite when repeated."""
    refused = None
    with_gradients = [forward for forward in unread.forwards if forward.grad]
    if values.bad_loss and with_gradients and all(forward.loss is None for forward in with_gradients):
        return _outside(with_gradients[-1], unread, values, bad=True)
    for forward in with_gradients:
        try:
            with forward.again() as (model, batch):
                if forward.lost:
                    refused = _not_repeated(forward, phase="backward")
                    continue
                if any(impurity(gradient) for gradient in forward.gradients.values()):
                    return _outside(forward, unread, values, bad=False)
                origin = explain_backward(model, batch, forward.repeat, partial(_backward, forward))
        except Exception as problem:  # noqa: BLE001 - whatever the model raises now, the script did not
            refused = _not_repeated(forward, first_line(problem), "backward")
            continue
        if origin is not None:
            if len(trajectory.losses) > 1 and origin.cause in OF_TRAINING:
                return or_divergence(model, origin, trajectory, {})
            return origin
    return refused


def of_step(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], trajectory: Trajectory) -> Origin | None:
    """The optimizer step that made weights of a model non-finite; None if they are finite."""
    own = {id(weight) for weight in model.parameters()}
    for optimizer in optimizers:
        if any(id(weight) in own for group in optimizer.param_groups for weight in group["params"]):
            trajectory.learning_rate = float(optimizer.param_groups[0].get("lr", 0.0))
            stepped: Mapping[str, Tensor] = dict.fromkeys(dict(model.named_parameters()), torch.zeros(()))
            if (origin := after_the_optimizer(model, optimizer, trajectory, stepped)) is not None:
                return origin
    return None


def _not_repeated(forward: WatchedForward, why: str = "", phase: Phase = "forward") -> Origin:
    """A call that was non-finite and cannot be repeated: its inputs are lost, unless another reason is given."""
    model, lost = forward.model, ", ".join(forward.lost)
    why = why or f"its inputs have been overwritten ({lost})"
    what = f"a {phase} of {type(model).__name__} was not finite, and {NOT_REPEATED}: {why}"
    return unexplained(model, what, "overwritten", operation=phase, phase=phase)


def _backward(forward: WatchedForward, output: Any) -> bool:
    """The backward that followed: from the loss in the output, or with the gradients that reached the outputs."""
    if backward_of(output):
        return True
    outputs = [tensor for _, tensor in judged_in(output)]
    pairs = [(outputs[number], gradient) for number, gradient in sorted(forward.gradients.items())]
    if pairs:
        torch.autograd.backward([tensor for tensor, _ in pairs], [gradient for _, gradient in pairs])
    return bool(pairs)


def _outside(forward: WatchedForward, unread: Unread, values: Values, *, bad: bool) -> Origin:
    """The outputs are finite; the loss that is computed from them (`bad`), or the gradient it hands back, is not."""
    model, operation, unlabelled = forward.model, "loss", any(values.unlabelled)
    cause: Cause = "unknown"
    remedy = "loss"
    zeros = [(name, int((value == 0).sum()), value.numel()) for name, value in unread.poles if bool((value == 0).any())]
    summary = f"the outputs of {type(model).__name__} are finite, but the loss computed from them is not"
    if unlabelled:
        cause, remedy = "no_labels", "loss_labels"
        summary = "every label of the loss, which is computed outside the model, is -100: the mean is 0/0"
    elif bad and zeros:
        operation, count, of = zeros[-1]
        cause = "division_by_zero" if operation == "div" else "unknown"
        what = "divides by zero" if operation == "div" else "takes the logarithm of zero"
        summary += f": {operation} {what} in {count} of {of} values"
        remedy = "loss_at_zero"
    elif not bad:
        cause = "derivative"
        summary = (
            f"the outputs of {type(model).__name__} and the loss computed from them are finite, but the gradient "
            "that the loss passes back is not"
        )
    return Origin(
        cause=cause,
        operation=operation,
        phase="data" if unlabelled else "backward",
        summary=summary,
        evidence={
            "gradients": [facts(g, f"output {n}") for n, g in forward.gradients.items()],
            "device": device_label(model),
        },
        remedy=REMEDIES[remedy],
    )
