"""Send every loss that is computed inside a block to the CPU, computed by the model, the trainer or the user."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers.trainer_pt_utils import LabelSmoother

from mpsdiag.emulation import mode as emulation
from mpsdiag.inputs.modules import move, to_cpu
from mpsdiag.trainers import chunked_loss

if TYPE_CHECKING:
    from transformers import Trainer

# By name, because a patch of torch.nn.functional replaces the function, but not what it is called.
_OTHER_LOSSES: Final = frozenset(
    {
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "cosine_embedding_loss",
        "ctc_loss",
        "gaussian_nll_loss",
        "hinge_embedding_loss",
        "huber_loss",
        "kl_div",
        "l1_loss",
        "margin_ranking_loss",
        "mse_loss",
        "multi_margin_loss",
        "multilabel_margin_loss",
        "nll_loss",
        "poisson_nll_loss",
        "smooth_l1_loss",
        "soft_margin_loss",
        "triplet_margin_loss",
    }
)


class LossesOnCPU(TorchFunctionMode):
    """Inside this block the losses of `torch.nn.functional` run on the CPU; each result goes back to its device.

    Cross-entropy over classes travels in chunks of tokens. Everything else a model does stays where it is.
    """

    def __init__(self, chunk_bytes: int = chunked_loss.CHUNK_BYTES) -> None:
        super().__init__()
        self.chunk_bytes = chunk_bytes

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "cross_entropy":
            return _on_cpu(lambda: self._cross_entropy(func, args, kwargs), (*args, *kwargs.values()))
        if name in _OTHER_LOSSES:
            return _on_cpu(lambda: func(*to_cpu(args), **to_cpu(kwargs)), (*args, *kwargs.values()))
        return func(*args, **kwargs)

    def _cross_entropy(self, func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        logits, labels = _leading(args, kwargs)
        options = {key: value for key, value in kwargs.items() if key not in ("input", "target")}
        usual = (
            len(args) <= 2
            and logits.dim() == 2
            and not labels.is_floating_point()
            and options.get("weight") is None
            and not options.get("label_smoothing")
            and options.get("size_average") is None
            and options.get("reduce") is None
        )
        if not usual:
            return func(*to_cpu(args), **to_cpu(kwargs))
        return chunked_loss.cross_entropy(
            logits,
            labels,
            ignore_index=options.get("ignore_index", -100),
            reduction=options.get("reduction", "mean"),
            chunk_bytes=self.chunk_bytes,
            dtype=_dtype_under_autocast(logits),
        )


def _leading(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    logits = args[0] if args else kwargs["input"]
    labels = args[1] if len(args) > 1 else kwargs["target"]
    return logits, labels


def _dtype_under_autocast(logits: Tensor) -> torch.dtype:
    """Autocast of every device, the CPU included, runs cross-entropy in float32."""
    if logits.dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled(logits.device.type):
        return torch.float32
    return logits.dtype


def _on_cpu(compute: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
    device = next((value.device for value in arguments if isinstance(value, Tensor)), torch.device("cpu"))
    with emulation.suspended():
        return move(compute(), device)


@dataclasses.dataclass
class ChunkedLabelSmoother(LabelSmoother):
    """Stands in for transformers' `LabelSmoother` during an evaluation: same numbers, on the CPU, in chunks."""

    chunk_bytes: int = chunked_loss.CHUNK_BYTES

    def __call__(
        self, model_output: Any, labels: Tensor, shift_labels: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Compute the smoothed loss; see `LabelSmoother.__call__`. The result is on the device of the logits."""
        logits = model_output["logits"] if isinstance(model_output, dict) else model_output[0]
        shifted = logits[..., :-1, :] if shift_labels else logits
        with emulation.suspended():
            loss = chunked_loss.smoothed_loss(
                shifted,
                labels[..., 1:] if shift_labels else labels,
                epsilon=self.epsilon,
                ignore_index=self.ignore_index,
                num_items_in_batch=num_items_in_batch,
                chunk_bytes=self.chunk_bytes,
            )
        return loss.to(logits.device)


@contextlib.contextmanager
def evaluation_losses_on_cpu(trainer: Trainer, chunk_bytes: int) -> Iterator[None]:
    """For this block, compute on the CPU whatever loss this trainer evaluates.

    The model's own loss is reached through the functions of `torch.nn.functional`. The user's `compute_loss_func` may
    do anything with the logits: it is handed outputs and labels on the CPU, and so it alone needs them there whole.
    """
    smoother: Any = trainer.label_smoother
    user_loss = trainer.compute_loss_func
    swapped: Any = trainer
    if type(smoother) is LabelSmoother:
        swapped.label_smoother = ChunkedLabelSmoother(smoother.epsilon, smoother.ignore_index, chunk_bytes)
    elif smoother is not None:
        swapped.label_smoother = _with_cpu_arguments(smoother)
    if user_loss is not None:
        trainer.compute_loss_func = _with_cpu_arguments(user_loss)
    try:
        with LossesOnCPU(chunk_bytes):
            yield
    finally:
        trainer.label_smoother, trainer.compute_loss_func = smoother, user_loss


def _with_cpu_arguments(user_loss: Callable[..., Any]) -> Callable[..., Any]:
    def compute(outputs: Any, labels: Any, **kwargs: Any) -> Any:
        device = labels.device if isinstance(labels, Tensor) else torch.device("cpu")
        with emulation.suspended():
            return move(user_loss(to_cpu(outputs), to_cpu(labels), **to_cpu(kwargs)), device)

    return compute
