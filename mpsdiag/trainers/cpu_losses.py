"""Send every loss computed inside a block, by the model, the trainer or the user, to the CPU.

Losses over classes are computed a chunk of tokens at a time, and are bit-equal to the stock ones computed at once: a
row of log-softmax does not depend on the rows beside it, and the reduction is done once, over the vector of all rows,
by the kernel of the stock loss. Only the order of a sum could make a difference, and it is the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers.trainer_pt_utils import LabelSmoother

from mpsdiag.emulation import mode as emulation
from mpsdiag.inputs.modules import move, to_cpu

if TYPE_CHECKING:
    from transformers import Trainer

CHUNK_BYTES: Final = 8 * 2**20
"""Default size of a chunk. One of logits (none if they are on the CPU already) and two of log-probabilities live."""


def rows_per_chunk(classes: int, bytes_per_value: int, chunk_bytes: int) -> int:
    """How many rows of logits fit into a chunk: at least 3, so that `chunks` never leaves a single row."""
    return max(3, chunk_bytes // max(1, classes * bytes_per_value))


def chunks(rows: int, per_chunk: int) -> list[slice]:
    """Cut `rows` rows into slices of at most `per_chunk`, the first one the longest, none of one row if there are more.

    A sum over a single row may be split over threads differently from the same row among others.
    """
    ends = list(range(per_chunk, rows, per_chunk))
    if ends and rows - ends[-1] == 1:
        ends[-1] -= 1
    return [slice(start, end) for start, end in itertools.pairwise([0, *ends, rows])]


def _dtype_under_autocast(logits: Tensor) -> torch.dtype:
    """Autocast of every device, the CPU included, runs cross-entropy in float32."""
    if logits.dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled(logits.device.type):
        return torch.float32
    return logits.dtype


def cross_entropy(
    logits: Tensor, labels: Tensor, *, ignore_index: int = -100, reduction: str = "mean", chunk_bytes: int = CHUNK_BYTES
) -> Tensor:
    """`torch.nn.functional.cross_entropy` without weights, on the CPU, in chunks of rows; bit-equal to it.

    Logits (rows, classes), floating point, and labels (rows,), int64, are on any device. The loss is on the CPU and
    without gradient: a scalar, or (rows,) for the reduction `none`.
    """
    labels, dtype = labels.to("cpu"), _dtype_under_autocast(logits)
    ignored = labels == ignore_index
    known = labels.masked_fill(ignored, 0).unsqueeze(-1)
    # Made before: small results between two chunks would keep the memory of one from being used for the next.
    found = torch.empty(known.shape, dtype=dtype)
    with torch.no_grad():
        for part in chunks(len(logits), rows_per_chunk(logits.shape[1], dtype.itemsize, chunk_bytes)):
            found[part] = torch.log_softmax(to_cpu(logits[part]).to(dtype), -1).gather(-1, known[part])
    # One class: every labelled row points at column 0, every other row at an ignored index.
    return F.nll_loss(found, ignored.long().neg(), ignore_index=-1, reduction=reduction)


@dataclasses.dataclass
class ChunkedLabelSmoother(LabelSmoother):
    """Replaces transformers' `LabelSmoother` during an evaluation: the same numbers, on the CPU, in chunks."""

    chunk_bytes: int = CHUNK_BYTES

    def __call__(
        self, model_output: Any, labels: Tensor, shift_labels: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Compute the smoothed loss; see `LabelSmoother.__call__`. The result is on the device of the logits."""
        logits = model_output["logits"] if isinstance(model_output, dict) else model_output[0]
        # Shifted logits are not contiguous: a chunk is picked by its rows, so that the whole is never copied.
        rows = torch.arange(logits.shape[:-1].numel(), device=logits.device).view(logits.shape[:-1])
        if shift_labels:
            rows, labels = rows[..., :-1], labels[..., 1:]
        labels = to_cpu(labels).reshape(-1, 1)
        ignored = labels.eq(self.ignore_index)
        known, rows, flat = labels.clamp(min=0), rows.flatten(), logits.flatten(0, -2)
        nll, total = torch.empty(known.shape, dtype=flat.dtype), torch.empty(known.shape)
        with torch.no_grad():
            for part in chunks(len(rows), rows_per_chunk(flat.shape[1], flat.element_size(), self.chunk_bytes)):
                negative = torch.log_softmax(to_cpu(flat[rows[part]]), -1).neg_()
                nll[part] = negative.gather(-1, known[part])
                total[part] = negative.sum(-1, keepdim=True, dtype=torch.float32)
        labelled = ignored.numel() - ignored.long().sum()
        count = labelled if num_items_in_batch is None else to_cpu(num_items_in_batch)
        mean_nll = nll.masked_fill_(ignored, 0.0).sum() / count
        mean_total = total.masked_fill_(ignored, 0.0).sum() / (count * flat.shape[1])
        loss: Tensor = (1 - self.epsilon) * mean_nll + self.epsilon * mean_total
        return loss.to(logits.device)


# By name, because a patch of torch.nn.functional replaces the function, but not what it is called.
_OTHER_LOSSES: Final = frozenset(
    {name for name in dir(F) if name.endswith("_loss")}
    | {"binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div"}
)


class LossesOnCPU(TorchFunctionMode):
    """Inside this block the losses of `torch.nn.functional` run on the CPU; each result goes back to its device.

    Cross-entropy over classes travels in chunks of tokens. Everything else a model does stays where it is.
    """

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        super().__init__()
        self.chunk_bytes = chunk_bytes

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "cross_entropy":
            return self._cross_entropy(func, *args, **kwargs)
        if name in _OTHER_LOSSES:
            return _on_cpu(func)(*args, **kwargs)
        return func(*args, **kwargs)

    def _cross_entropy(
        self,
        func: Callable[..., Tensor],
        input: Tensor,  # noqa: A002 - the name of torch
        target: Tensor,
        *rest: Any,
        **options: Any,
    ) -> Any:
        """In chunks if the logits are rows of classes and the arguments request only a plain sum of the rows."""
        chunked = input.dim() == 2 and not target.is_floating_point() and not rest
        chunked = chunked and all(options.get(name) is None for name in ("weight", "size_average", "reduce"))
        if not chunked or options.get("label_smoothing"):
            return _on_cpu(func)(input, target, *rest, **options)
        kept = {name: options[name] for name in ("ignore_index", "reduction") if name in options}
        with emulation.suspended():
            loss = cross_entropy(input, target, chunk_bytes=self.chunk_bytes, **kept)
        return loss.to(input.device)


def _on_cpu(compute: Callable[..., Any]) -> Callable[..., Any]:
    """A loss on arguments moved to the CPU; its result goes to the device of the first tensor among them."""

    def computed(*args: Any, **kwargs: Any) -> Any:
        devices = (value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with emulation.suspended():
            return move(compute(*to_cpu(args), **to_cpu(kwargs)), next(devices, "cpu"))

    return computed


@contextlib.contextmanager
def evaluation_losses_on_cpu(trainer: Trainer, chunk_bytes: int) -> Iterator[None]:
    """For this block, compute on the CPU whatever loss this trainer evaluates.

    The model's own loss is reached through the functions of `torch.nn.functional`. The user's `compute_loss_func` may
    do anything with the logits, so it gets the complete outputs and labels on the CPU.
    """
    smoother: Any = trainer.label_smoother
    user_loss = trainer.compute_loss_func
    swapped: Any = trainer
    if type(smoother) is LabelSmoother:
        swapped.label_smoother = ChunkedLabelSmoother(smoother.epsilon, smoother.ignore_index, chunk_bytes)
    elif smoother is not None:
        swapped.label_smoother = _on_cpu(smoother)
    if user_loss is not None:
        trainer.compute_loss_func = _on_cpu(user_loss)
    try:
        with LossesOnCPU(chunk_bytes):
            yield
    finally:
        trainer.label_smoother, trainer.compute_loss_func = smoother, user_loss
