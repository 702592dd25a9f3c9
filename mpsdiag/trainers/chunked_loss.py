"""Losses computed on the CPU a chunk of tokens at a time, bit-equal to the stock ones computed at once.

Why equality holds: a row of log-softmax does not depend on the rows beside it, and the reduction is done once, over the
vector of all rows, by the kernel the stock loss uses (`nll_loss`, with one class: column 0 holds the log-probability of
the label). Only the order of a sum could make a difference, and it is the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHUNK_BYTES: Final = 32 * 2**20
"""Default size of a chunk. One of logits (none if they are on the CPU already) and one of log-probabilities live."""


def rows_per_chunk(classes: int, bytes_per_value: int, chunk_bytes: int) -> int:
    """How many rows of logits fit a chunk: at least 3, so that `chunks` can leave no row alone."""
    return max(3, chunk_bytes // max(1, classes * bytes_per_value))


def chunks(rows: int, per_chunk: int) -> list[slice]:
    """Cut `rows` rows into slices of at most `per_chunk`, the first one the longest, none of one row if there are more.

    A sum over one single row may be split over threads in another way than the same row among others.
    """
    ends = list(range(per_chunk, rows, per_chunk))
    if ends and rows - ends[-1] == 1:
        ends[-1] -= 1
    return [slice(start, end) for start, end in itertools.pairwise([0, *ends, rows])]


def is_on_cpu(tensor: Tensor) -> bool:
    """Say whether a tensor need not be copied to be read on the CPU."""
    return tensor.device.type == "cpu"


class _Desk:
    """Room for one chunk of logits on the CPU and one of log-probabilities, used again for every chunk.

    Allocating anew for every chunk costs time (pages are faulted in again) and, by fragmentation, several chunks.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._copy: Tensor | None = None
        self._result: Tensor | None = None

    def log_softmax(self, logits: Tensor) -> Tensor:
        """Log-softmax over the last axis of (rows, classes) logits from any device; overwritten by the next call."""
        import torch

        here = logits if is_on_cpu(logits) and logits.dtype == self._dtype else self._bring(logits)
        result = self._result
        if result is None or len(result) < len(here) or result.dtype != here.dtype:  # autocast changes the dtype
            self._result = result = torch.log_softmax(here, dim=-1)
            return result
        return torch.log_softmax(here, dim=-1, out=result[: len(here)])

    def _bring(self, logits: Tensor) -> Tensor:
        import torch

        if self._copy is None or len(self._copy) < len(logits):
            self._copy = torch.empty(logits.shape, dtype=self._dtype)
        return self._copy[: len(logits)].copy_(logits)


def label_log_probabilities(
    logits: Tensor, labels: Tensor, ignore_index: int, chunk_bytes: int, dtype: torch.dtype | None = None
) -> Tensor:
    """Log-probability of each row's label, on the CPU, without gradient.

    Args:
        logits: (rows, classes), floating point, on any device.
        labels: (rows,), int64, on the CPU; ignored rows get the log-probability of class 0.
        ignore_index: The label that means "no label".
        chunk_bytes: Size of a chunk of logits.
        dtype: Convert the logits to it on the way; their own if None.

    Returns:
        (rows,), in the dtype log-softmax has on the CPU.
    """
    import torch

    rows, classes = logits.shape
    dtype = dtype or logits.dtype
    safe = labels.masked_fill(labels == ignore_index, 0).unsqueeze(-1)
    desk = _Desk(dtype)
    with torch.no_grad():
        parts = chunks(rows, rows_per_chunk(classes, dtype.itemsize, chunk_bytes))
        found = [desk.log_softmax(logits[part]).gather(-1, safe[part]) for part in parts]
    return torch.cat(found).squeeze(-1)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    chunk_bytes: int = CHUNK_BYTES,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`torch.nn.functional.cross_entropy` without weights, on the CPU, in chunks of rows; bit-equal to it.

    Args:
        logits: (rows, classes), floating point, on any device.
        labels: (rows,), int64, on any device.
        ignore_index: The label that means "no label".
        reduction: `mean`, `sum` or `none`.
        chunk_bytes: Size of a chunk of logits.
        dtype: Convert the logits to it on the way, as autocast would; their own if None.

    Returns:
        The loss, on the CPU: a scalar, or (rows,) for `none`.
    """
    import torch.nn.functional as F

    labels = labels.to("cpu")
    found = label_log_probabilities(logits, labels, ignore_index, chunk_bytes, dtype)
    # One class: every labelled row points at column 0, every other row at an index that is ignored.
    only_class = (labels == ignore_index).long().neg()
    return F.nll_loss(found.unsqueeze(-1), only_class, ignore_index=-1, reduction=reduction)


def smoothed_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    ignore_index: int = -100,
    num_items_in_batch: Any = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """The label-smoothed loss of transformers' `LabelSmoother`, on the CPU, in chunks of tokens; bit-equal to it.

    Args:
        logits: (..., classes), already shifted, on any device.
        labels: (...), or (..., 1), int64, on any device.
        epsilon: The smoothing factor.
        ignore_index: The label that means "no label".
        num_items_in_batch: Number of labels to divide by; those of this batch if None. A number or a scalar tensor.
        chunk_bytes: Size of a chunk of logits.

    Returns:
        The loss, a scalar, on the CPU.
    """
    import torch

    labels = labels.to("cpu")
    if labels.dim() == logits.dim() - 1:
        labels = labels.unsqueeze(-1)
    ignored = labels.eq(ignore_index)
    classes = logits.shape[-1]
    flat_labels = torch.clamp(labels, min=0).reshape(-1, 1)
    desk, likelihood, spread, start = _Desk(logits.dtype), [], [], 0
    with torch.no_grad():
        for rows in _row_blocks(logits, rows_per_chunk(classes, logits.element_size(), chunk_bytes)):
            negative = desk.log_softmax(rows).neg_()
            likelihood.append(negative.gather(-1, flat_labels[start : start + len(rows)]))
            spread.append(negative.sum(dim=-1, keepdim=True, dtype=torch.float32))
            start += len(rows)
    nll = torch.cat(likelihood).view(labels.shape).masked_fill_(ignored, 0.0)
    smooth = torch.cat(spread).view(labels.shape).masked_fill_(ignored, 0.0)
    if num_items_in_batch is None:
        count: Any = ignored.numel() - ignored.long().sum()
    else:
        count = num_items_in_batch.to("cpu") if torch.is_tensor(num_items_in_batch) else num_items_in_batch
    mean_nll = nll.sum() / count
    mean_smooth = smooth.sum() / (count * classes)
    loss: Tensor = (1 - epsilon) * mean_nll + epsilon * mean_smooth
    return loss


def _row_blocks(logits: Tensor, per_chunk: int) -> Iterator[Tensor]:
    """Rows of (..., classes) logits in order, (rows, classes) at a time, on their device.

    Shifted logits are not contiguous over the batch: short sequences travel several at a time, long ones in parts, and
    the whole is never copied.
    """
    classes = logits.shape[-1]
    if logits.dim() == 2 or logits.is_contiguous():
        flat = logits.view(-1, classes)
        for part in chunks(len(flat), per_chunk):
            yield flat[part]
        return
    rows = logits[0].shape[:-1].numel()
    if rows > per_chunk:
        for sequence in logits:
            yield from _row_blocks(sequence, per_chunk)
        return
    for part in chunks(len(logits), max(3, per_chunk // max(1, rows))):
        yield logits[part].reshape(-1, classes)
