"""Count non-finite losses where they are made, in the forward of the model, without waiting for the device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mpsdiag.inputs.cpu_copy import mark_watcher
from mpsdiag.inputs.nonfinite import no_label_counts
from mpsdiag.inputs.outputs import logits_of, loss_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class Count:
    """How many batches there were, how many were not finite, and how many of those had no label at all."""

    batches: int = 0
    bad: int = 0
    unlabelled: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.batches + other.batches, self.bad + other.bad, self.unlabelled + other.unlabelled)


class Counter:
    """Counts batches; the flags stay on the device until somebody reads them."""

    def __init__(self) -> None:
        self._batches = 0
        self._bad: Tensor | int = 0
        self._unlabelled: Tensor | int = 0

    def note(self, bad: Tensor, unlabelled: Tensor | None) -> None:
        """Count one batch.

        Args:
            bad: Scalar bool, whether it was not finite.
            unlabelled: Scalar bool, whether no label of it counted; None if that is not known.
        """
        self._batches += 1
        self._bad = self._bad + bad.long()
        if unlabelled is not None:
            self._unlabelled = self._unlabelled + (bad & unlabelled.to(bad.device)).long()

    def read(self) -> Count:
        """The counts so far. Waits for the device."""
        return Count(self._batches, int(self._bad), int(self._unlabelled))

    def take(self) -> Count:
        """The counts so far; counting starts anew."""
        found = self.read()
        self.__init__()  # type: ignore[misc]  # the initial state is what is wanted
        return found


def judge_loss(loss: Tensor) -> Tensor:
    """Scalar bool on the loss's device: it is not finite."""
    return (~torch.isfinite(loss.detach())).any()


def judge_output(output: Any) -> Tensor | None:
    """Scalar bool: the loss in a model's output is not finite, or, where it has none, its logits hold a NaN.

    None if the output has neither.
    """
    loss, logits = loss_of(output), logits_of(output)
    if loss is not None:
        return judge_loss(loss)
    if logits is not None and logits.is_floating_point() and logits.numel():
        return torch.isnan(logits.detach().amax())
    return None


Note = Callable[[bool, "Tensor", "Tensor | None"], None]
"""Called with: is the model in training mode, is the batch bad, is it without labels."""


def watch_forward(model: nn.Module, note: Any) -> RemovableHandle:
    """Call a bound method after every forward of a model, for as long as its object lives.

    Args:
        model: The model.
        note: A bound method with the parameters of `Note`. Only a weak reference to it is kept, so that copying the
            model does not copy what the method belongs to.
    """
    weak = weakref.WeakMethod(note)

    def hook(module: nn.Module, _args: Any, inputs: dict[str, Any], output: Any) -> None:
        alive = weak()
        bad = judge_output(output) if alive is not None else None
        if alive is not None and bad is not None:
            alive(module.training, bad, no_label_counts(inputs))

    return model.register_forward_hook(mark_watcher(hook), with_kwargs=True)
