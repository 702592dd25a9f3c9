"""Faults in what the model was given: bad weights, a bad batch, indices out of range, no label that counts."""

from typing import Any

from torch import Tensor, nn

from mpsdiag.inputs.nonfinite import IGNORED_LABEL, is_statistic, no_label_counts, unread_nonfinite
from mpsdiag.tracing.causes.root_cause import Candidate
from mpsdiag.tracing.origin import REMEDIES, Origin
from mpsdiag.tracing.watch.calls import TARGETED
from mpsdiag.tracing.watch.tensors import LISTED, facts, impurity


def bad_weights(first: Candidate) -> Origin | None:
    """An operation read a weight that already contained NaN or infinity."""
    operand = first.terminal.operand
    if first.terminal.kind != "weight" or operand is None:
        return None
    bad = nonfinite_weights(first.model)
    others = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
    return first.origin(
        "bad_weights",
        f"the {operand.source.kind} {operand.source.name} is not finite before anything runs{others}",
        "broken_statistics" if operand.source.statistic else "broken_weights",
        weight=operand.source.name,
        weights=bad[:LISTED],
        bad_tensors=len(bad),
    )


def unread_weights(model: nn.Module) -> Origin | None:
    """The checkpoint has NaN or infinity in weights that the loaded class does not read."""
    bad, sentence = unread_nonfinite(model)
    if not bad:
        return None
    return Origin(
        cause="bad_weights",
        module=bad[0].rpartition(".")[0],
        operation="from_pretrained",
        phase="data",
        summary=sentence,
        evidence={"weights": [{"name": name} for name in bad[:LISTED]], "bad_tensors": len(bad)},
        remedy=REMEDIES["broken_weights"],
    )


def nonfinite_weights(model: nn.Module) -> list[dict[str, Any]]:
    """Facts about non-finite parameters and running statistics, and about other buffers that hold NaN."""
    found = []
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        state = impurity(tensor)
        if state.nan or (state and (isinstance(tensor, nn.Parameter) or is_statistic(name))):
            found.append(facts(tensor, name))
    return found


def bad_inputs(first: Candidate) -> Origin | None:
    """A tensor of the batch is non-finite, or one of its masks holds NaN."""
    operand = first.terminal.operand
    if first.terminal.kind != "batch" or operand is None:
        return None
    name = operand.source.name
    if "mask" in name:
        return first.origin("bad_mask", f"'{name}' of the batch holds NaN", "added_masks", input=name)
    return first.origin(
        "bad_inputs", f"'{name}' of the batch is not finite before the model sees it", "batch", input=name
    )


def no_labels(first: Candidate) -> Origin | None:
    """The loss is NaN, and none of its targets counts."""
    operation, named, labels = first.event.operation, first.named, first.batch.get("labels")
    unlabelled = bool(no_label_counts({"labels": labels}))
    if operation in TARGETED:
        target = named.get("target")
        ignored = int(named.get("ignore_index", IGNORED_LABEL))
        if not isinstance(target, Tensor) or target.is_floating_point() or bool(target.ne(ignored).any()):
            return None
        if target.numel():
            return _no_labels(first, target)
    # A hand-written mean over the labels that are left.
    over_nothing = operation in ("mean", *TARGETED) and any(not tensor.numel() for _, tensor in first.inputs)
    if unlabelled and (over_nothing or (operation == "div" and _zero(named.get("other")))):
        return _no_labels(first, first.batch["labels"])
    return None


def _zero(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not impurity(value) and float(value) == 0.0
    return bool(value == 0)


def _no_labels(first: Candidate, labels: Tensor) -> Origin:
    what = "every label of the batch is -100, so its mean loss is 0/0"
    found = {"labels": labels.numel(), "counted": 0, "ignored": IGNORED_LABEL}
    return first.origin("no_labels", what, "labels", **found)
