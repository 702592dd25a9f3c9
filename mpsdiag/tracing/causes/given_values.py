"""Faults of what the model was given: broken weights, a bad batch, indices that point nowhere, no label that counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mpsdiag.findings import Advice
from mpsdiag.inputs.nonfinite import IGNORED_LABEL, no_label_counts
from mpsdiag.tracing.causes.root_cause import Candidate, Explanation
from mpsdiag.tracing.watch.operations import LOSSES
from mpsdiag.tracing.watch.tensors import LISTED, facts, impurity

WEIGHTS_REMEDY = Advice(
    text="The weights themselves are broken: no attention, device or batch makes this finite. Go back to the last "
    "checkpoint whose weights are finite, and look for the step that broke them.",
    commands=[
        "mpsdiag trace --model NEWEST_CHECKPOINT --checkpoints FOLDER_OF_CHECKPOINTS",
        "mpsdiag trace --model LAST_GOOD_CHECKPOINT --dataset YOUR_DATA --train",
    ],
)

INDICES_REMEDY = Advice(
    text="Use the tokenizer that belongs to this model, resize the embedding after adding tokens, and keep sequences "
    "within the model's longest.",
    commands=["model.resize_token_embeddings(len(tokenizer))"],
)

LABELS_REMEDY = Advice(
    text="This is the data, not the device: every label of the batch is -100. Look at the truncation length (prompts "
    "that fill it leave no answer), at what the collator masks, and at a pad token that is also the end-of-text token; "
    "drop such batches, or make them larger.",
    commands=['dataset.filter(lambda row: any(label != -100 for label in row["labels"][1:]))'],
)


def bad_weights(first: Candidate) -> Explanation | None:
    """NaN or infinity is already in a weight that an operation read."""
    operand = first.terminal.operand
    if first.terminal.kind != "weight" or operand is None:
        return None
    bad = nonfinite_weights(first.model)
    others = f", and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
    return Explanation(
        "bad_weights",
        f"the weight {operand.source.name} is not finite before anything runs{others}",
        WEIGHTS_REMEDY,
        {"weight": operand.source.name, "weights": bad[:LISTED], "bad_tensors": len(bad)},
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


def bad_inputs(first: Candidate) -> Explanation | None:
    """A tensor of the batch is not finite; masks are judged elsewhere."""
    operand = first.terminal.operand
    if first.terminal.kind != "batch" or operand is None or "mask" in operand.source.name:
        return None
    return Explanation(
        "bad_inputs",
        f"'{operand.source.name}' of the batch is not finite before the model sees it",
        Advice(
            text="Look at what made the batch: the features, images or embeddings that were computed before."
        ),
        {"input": operand.source.name},
    )


def index_out_of_range(first: Candidate) -> Explanation | None:
    """An index of the batch points outside the table it is looked up in; the CPU refuses, a device may read garbage."""
    if not isinstance(first.event.error, IndexError):
        return None
    integers = [facts(tensor, name) for name, tensor in first.inputs if not tensor.is_floating_point()]
    return Explanation(
        "bad_inputs",
        f"an index points outside of what it is looked up in ({first.event.error})",
        INDICES_REMEDY,
        {"indices": integers, "error": str(first.event.error)},
    )


def no_labels(first: Candidate) -> Explanation | None:
    """The loss is NaN and no target of it counts."""
    operation, named = first.event.operation, first.named
    if operation in LOSSES:
        target = named.get("target")
        ignored = int(named.get("ignore_index", IGNORED_LABEL))
        if not isinstance(target, Tensor) or target.is_floating_point() or bool(target.ne(ignored).any()):
            return None
        return _no_labels(int(target.numel()))
    if operation == "div":
        labels = first.batch.get("labels")
        if (
            isinstance(labels, Tensor)
            and bool(no_label_counts({"labels": labels}))
            and _zero(named.get("other"))
        ):
            return _no_labels(int(labels.numel()))
    return None


def _zero(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not impurity(value) and float(value) == 0.0
    return bool(value == 0)


def _no_labels(labels: int) -> Explanation:
    return Explanation(
        "no_labels",
        "every label of the batch is -100, so its mean loss is 0/0",
        LABELS_REMEDY,
        {"labels": labels, "counted": 0, "ignored": IGNORED_LABEL},
    )
