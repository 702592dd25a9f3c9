"""Count non-finite losses where they arise, in the forward of the model, without waiting for the device."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mpsdiag.inputs.modules import embeddings_of, logits_of, loss_of, mark_watcher


@dataclass(frozen=True)
class BatchCount:
    """The number of batches, of non-finite ones, and of those without any label."""

    batches: int = 0
    bad: int = 0
    unlabelled: int = 0

    def __add__(self, other: BatchCount) -> BatchCount:
        return BatchCount(self.batches + other.batches, self.bad + other.bad, self.unlabelled + other.unlabelled)


class Counter:
    """Counts batches; the flags stay on the device until they are read."""

    def __init__(self) -> None:
        self._batches = 0
        self._bad: Tensor | int = 0
        self._unlabelled: Tensor | int = 0

    def note(self, bad: Tensor, unlabelled: Tensor | None) -> None:
        """Count one batch, by scalar bools: it was not finite; no label of it counted (None if not known)."""
        self._batches += 1
        self._bad = self._bad + bad.long()
        if unlabelled is not None:
            self._unlabelled = self._unlabelled + (bad & unlabelled.to(bad.device)).long()

    def read(self) -> BatchCount:
        """The counts so far. Waits for the device."""
        return BatchCount(self._batches, int(self._bad), int(self._unlabelled))

    def take(self) -> BatchCount:
        """The counts so far; counting starts again from zero."""
        found = self.read()
        self.__init__()  # type: ignore[misc]  # the initial state is what is wanted
        return found


def judge_loss(loss: Tensor) -> Tensor:
    """Scalar bool on the loss's device: it is not finite."""
    return (~torch.isfinite(loss.detach())).any()


def judge_output(output: Any) -> Tensor | None:
    """Scalar bool: the loss in a model's output is non-finite or, without a loss, its logits or embeddings are NaN.

    None if the output has none of these.
    """
    loss, logits = loss_of(output), logits_of(output)
    if logits is None:
        logits = embeddings_of(output)
    if loss is not None:
        return judge_loss(loss)
    if logits is not None and logits.is_floating_point() and logits.numel():
        return torch.isnan(logits.detach().amax())
    return None


def watch_forward(model: nn.Module, look: Any) -> RemovableHandle:
    """Call a bound method with (module, inputs, output) after every forward of a model, while its object lives.

    Only a weak reference to the method is kept, so that copying the model does not copy what the method belongs to.
    """
    weak = weakref.WeakMethod(look)

    def hook(module: nn.Module, args: Any, inputs: dict[str, Any], output: Any) -> None:
        alive = weak()
        if alive is not None:
            alive(module, inputs or _features(args), output)

    return model.register_forward_hook(mark_watcher(hook), with_kwargs=True)


def _features(args: tuple[Any, ...]) -> dict[str, Any]:
    """The batch of a model that takes one dictionary, as in sentence-transformers, which adds embeddings to it."""
    given = args[0] if args and isinstance(args[0], Mapping) else {}
    return {name: value for name, value in given.items() if not name.endswith(("embedding", "embeddings"))}


def noting(step: Any, note: Any) -> Any:
    """A step of a Trainer that passes its result and its arguments to `note`."""

    def noted(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        note(result, *args, **kwargs)
        return result

    return noted


def evaluation_prefix(metrics: dict[str, Any]) -> str | None:
    """`eval` of metrics with `eval_runtime`; None for those of training."""
    for key in metrics:
        if key.endswith("_runtime") and key != "train_runtime":
            return key.removesuffix("_runtime")
    return None
