"""Values that were bad before anything ran: in the weights, in the batch, or indices that point nowhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mpsdiag.findings import Advice
from mpsdiag.tracing.causes.root_cause import Candidate, Explanation
from mpsdiag.tracing.watch.tensors import LISTED, facts

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


def bad_weights(birth: Candidate) -> Explanation | None:
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


def bad_inputs(birth: Candidate) -> Explanation | None:
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


def index_out_of_range(birth: Candidate) -> Explanation | None:
    """An index of the batch points outside the table it is looked up in; the CPU refuses, a device may read garbage."""
    if not isinstance(birth.event.error, IndexError):
        return None
    integers = [facts(tensor, name) for name, tensor in birth.inputs if not tensor.is_floating_point()]
    return Explanation(
        "bad_inputs",
        f"an index points outside of what it is looked up in ({birth.event.error})",
        INDICES_REMEDY,
        {"indices": integers, "error": str(birth.event.error)},
    )
