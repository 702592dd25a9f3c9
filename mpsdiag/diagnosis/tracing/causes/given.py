"""Values that were bad before anything ran: in the weights, in the batch, or indices that point nowhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mpsdiag.diagnosis.diagnosis import Advice
from mpsdiag.diagnosis.tracing.causes.birth import Birth, Explanation
from mpsdiag.diagnosis.tracing.tensors import facts, listed

LISTED_WEIGHTS = 16

WEIGHTS_REMEDY = Advice(
    text="The weights themselves are broken: no attention, device or batch makes this finite. Go back to the last "
    "checkpoint whose weights are finite, and look for the step that broke them.",
    commands=[
        "mpsdiag trace --model NEWEST_CHECKPOINT --checkpoints FOLDER_OF_CHECKPOINTS",
        "mpsdiag trace --model LAST_GOOD_CHECKPOINT --dataset YOUR_DATA --train",
    ],
)


def bad_weights(birth: Birth) -> Explanation | None:
    """NaN or infinity is already in a weight that an operation read."""
    operand = birth.terminal.operand
    if birth.terminal.kind != "weight" or operand is None:
        return None
    bad = nonfinite_weights(birth.model)
    others = f", and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
    return Explanation(
        "bad_weights",
        f"the weight {operand.source.name} is not finite before anything runs{others}",
        WEIGHTS_REMEDY,
        {"weight": operand.source.name, "weights": bad[:LISTED_WEIGHTS], "bad_tensors": len(bad)},
    )


def nonfinite_weights(model: nn.Module) -> list[dict[str, Any]]:
    """Facts of the parameters and buffers that hold NaN, and of the parameters that hold infinity."""
    found = []
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            found.append(facts(weight, name))
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() and bool(torch.isnan(buffer).any()):
            found.append(facts(buffer, name))
    return found


def bad_inputs(birth: Birth) -> Explanation | None:
    """A tensor of the batch is not finite; masks are judged elsewhere."""
    operand = birth.terminal.operand
    if birth.terminal.kind != "batch" or operand is None or "mask" in operand.source.name:
        return None
    return Explanation(
        "bad_inputs",
        f"'{operand.source.name}' of the batch is not finite before the model sees it",
        Advice(
            text="Look at what made the batch: the features, images or embeddings that were computed before."
        ),
        {"input": operand.source.name},
    )


def index_out_of_range(birth: Birth) -> Explanation | None:
    """An index of the batch points outside the table it is looked up in; the CPU refuses, a device may read garbage."""
    if not isinstance(birth.event.error, IndexError):
        return None
    integers = [facts(tensor, name) for name, tensor in birth.inputs if not tensor.is_floating_point()]
    return Explanation(
        "bad_inputs",
        f"an index points outside of what it is looked up in ({birth.event.error})",
        _indices_remedy(),
        {"indices": integers, "error": str(birth.event.error)},
    )


def indices_of_batch(model: nn.Module, batch: dict[str, Any]) -> tuple[str, str, Explanation] | None:
    """Check token ids and labels against the sizes of the model, before it runs: not every device would complain.

    Returns:
        Module path, operation and explanation of the first index out of range; None if all fit.
    """
    table = _embedding(model)
    ids = batch.get("input_ids")
    if table is not None and isinstance(ids, Tensor) and ids.numel():
        name, rows = table
        wrong = (ids < 0) | (ids >= rows)
        if bool(wrong.any()):
            return (
                name,
                "embedding",
                _out_of_range("input_ids", ids, wrong, rows, "the embedding", smallest=0),
            )
    labels = batch.get("labels")
    size = _output_size(model)
    if size is not None and isinstance(labels, Tensor) and labels.numel() and not labels.is_floating_point():
        wrong = (labels >= size) | ((labels < 0) & (labels != -100))
        if bool(wrong.any()):
            return "", "cross_entropy", _out_of_range("labels", labels, wrong, size, "the logits", smallest=0)
    return None


def _out_of_range(
    key: str, indices: Tensor, wrong: Tensor, size: int, what: str, *, smallest: int
) -> Explanation:
    rows = wrong.any(-1) if wrong.dim() > 1 else wrong
    return Explanation(
        "bad_inputs",
        f"'{key}' reaches from {int(indices.min())} to {int(indices.max())}, and {what} of the model takes {smallest} "
        f"to {size - 1}",
        _indices_remedy(),
        {"input": key, "out_of_range": int(wrong.sum()), "sequences": listed(rows), "size": size}
        | {"range": [int(indices.min()), int(indices.max())]},
    )


def _indices_remedy() -> Advice:
    return Advice(
        text="Use the tokenizer that belongs to this model, resize the embedding after adding tokens, and keep "
        "sequences within the model's longest.",
        commands=["model.resize_token_embeddings(len(tokenizer))"],
    )


def _embedding(model: nn.Module) -> tuple[str, int] | None:
    getter = getattr(model, "get_input_embeddings", None)
    if getter is None:
        return None
    table = getter()
    if not isinstance(table, nn.Embedding):
        return None
    name = next((name for name, module in model.named_modules() if module is table), "")
    return name, table.num_embeddings


def _output_size(model: nn.Module) -> int | None:
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if getter is not None else None
    weight = getattr(head, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.dim() == 2 else None
