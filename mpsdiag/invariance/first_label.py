"""Labels predicted from a padded position: how much of a loss comes from them, and how to leave them out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpsdiag.findings import FirstLabel
from mpsdiag.inputs.modules import logits_of
from mpsdiag.inputs.nonfinite import IGNORED_LABEL


def first_label(model: nn.Module, batches: Sequence[Mapping[str, Any]], logits: Iterable[Tensor]) -> FirstLabel | None:
    """Mean losses over all labels, without those predicted at padding, and with each sequence alone.

    `model` is a causal language model in evaluation mode; `batches` have `input_ids`, `attention_mask` and `labels` of
    shape (sequences, positions), and `logits`, asked for one at a time, are what it gives for each. None where no label
    is predicted at padding.
    """
    padded = [predicted_at_padding(batch["labels"], batch["attention_mask"]) for batch in batches]
    if not any(bool(found.any()) for found in padded):
        return None
    every, rest, alone = [], [], []
    with torch.no_grad():
        for batch, found, out in zip(batches, padded, logits, strict=True):
            every.append(_losses(out, batch["labels"]))
            rest.append(_losses(out, batch["labels"].masked_fill(found, IGNORED_LABEL)))
            alone += [_alone(model, batch, row) for row in range(len(found))]
    return FirstLabel(eval_loss=_mean(every), eval_loss_without=_mean(rest), eval_loss_alone=_mean(alone))


def predicted_at_padding(labels: Tensor, attention_mask: Tensor) -> Tensor:
    """Which labels a causal model predicts from a padded position: the position before is padding, the label counts.

    `labels` (-100 where there is none), `attention_mask` and the bool result have the shape (sequences, positions).
    """
    before = F.pad(attention_mask[:, :-1] == 0, (1, 0), value=False)
    return before & (labels != IGNORED_LABEL)


def without_first_label(collator: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """The fix `first_label`: a collator whose batches have no label predicted from a padded position.

    Batches without `labels` and `attention_mask` of one shape are handed on as they are.
    """

    def collate(*args: Any, **kwargs: Any) -> dict[str, Any]:
        batch = collator(*args, **kwargs)
        labels, mask = batch.get("labels"), batch.get("attention_mask")
        if isinstance(labels, Tensor) and isinstance(mask, Tensor) and labels.shape == mask.shape:
            batch["labels"] = labels.masked_fill(predicted_at_padding(labels, mask), IGNORED_LABEL)
        return batch

    return collate


def _alone(model: nn.Module, batch: Mapping[str, Any], row: int) -> tuple[float, int]:
    kept = batch["attention_mask"][row].bool()
    logits = logits_of(model(input_ids=batch["input_ids"][row][kept][None])) if bool(kept.any()) else None
    return (0.0, 0) if logits is None else _losses(logits, batch["labels"][row][kept][None])


def _losses(logits: Tensor, labels: Tensor) -> tuple[float, int]:
    """The sum of the losses of shifted labels, and their number."""
    shifted = labels[:, 1:].to(logits.device)
    losses = F.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), shifted, ignore_index=IGNORED_LABEL, reduction="sum"
    )
    return float(losses), int((shifted != IGNORED_LABEL).sum())


def _mean(losses: Sequence[tuple[float, int]]) -> float:
    count = sum(number for _, number in losses)
    return sum(loss for loss, _ in losses) / count if count else float("nan")
