"""No label counts: the mean loss of a batch is 0 divided by 0, on any device."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mpsdiag.findings import Advice
from mpsdiag.inputs.nonfinite import IGNORED_LABEL, no_label_counts
from mpsdiag.tracing.causes.root_cause import Candidate, Explanation
from mpsdiag.tracing.watch.operations import LOSSES
from mpsdiag.tracing.watch.tensors import impurity

REMEDY = Advice(
    text="This is the data, not the device: every label of the batch is -100. Look at the truncation length (prompts "
    "that fill it leave no answer), at what the collator masks, and at a pad token that is also the end-of-text token; "
    "drop such batches, or make them larger.",
    commands=['dataset.filter(lambda row: any(label != -100 for label in row["labels"][1:]))'],
)


def no_labels(birth: Candidate) -> Explanation | None:
    """The loss is NaN and no target of it counts."""
    operation, named = birth.event.operation, birth.named
    if operation in LOSSES:
        target = named.get("target")
        ignored = int(named.get("ignore_index", IGNORED_LABEL))
        if not isinstance(target, Tensor) or target.is_floating_point() or bool(target.ne(ignored).any()):
            return None
        return _explain(int(target.numel()))
    if operation == "div":
        labels = birth.batch.get("labels")
        if (
            isinstance(labels, Tensor)
            and bool(no_label_counts({"labels": labels}))
            and _zero(named.get("other"))
        ):
            return _explain(int(labels.numel()))
    return None


def _zero(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not impurity(value) and float(value) == 0.0
    return bool(value == 0)


def _explain(labels: int) -> Explanation:
    return Explanation(
        "no_labels",
        "every label of the batch is -100, so its mean loss is 0/0",
        REMEDY,
        {"labels": labels, "counted": 0, "ignored": IGNORED_LABEL},
    )
