"""`mpsdiag run --check`: exposure and padding invariance of a script's own model and first batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mpsdiag.emulation import suspended
from mpsdiag.errors import first_line
from mpsdiag.fixes.process import install
from mpsdiag.inputs.cpu_copy import copy_to_cpu
from mpsdiag.inputs.modules import first_tensor
from mpsdiag.scenario.exposure import predict
from mpsdiag.sdpa.bound import allowed_error, largest_error
from mpsdiag.tracing.process.forwards import WatchedForward
from mpsdiag.tracing.process.watched import ScriptCheck
from mpsdiag.tracing.watch.model_state import device_label, in_mode
from mpsdiag.tracing.watch.tensors import fresh, impurity, judged_in

BATCHES = 4
"""So many batches of the script are looked at."""
FIXES = ("eager", "safe_sdpa")


def check_forwards(forwards: Sequence[WatchedForward], *, evaluation: bool) -> ScriptCheck:
    """Look at the model of some calls with their batches, in evaluation mode and without gradients."""
    model = forwards[0].model
    found = ScriptCheck(
        model=type(model).__name__, device=device_label(model), batches=len(forwards), evaluation=evaluation
    )
    try:
        _look(found, [forward for forward in forwards if forward.model is model])
    except Exception as problem:  # noqa: BLE001 - whatever the model raises now, the script did not
        found.notes.append(f"not all could be looked at: {first_line(problem)}")
    return found


def _look(found: ScriptCheck, forwards: Sequence[WatchedForward]) -> None:
    batches: list[Mapping[str, Any]] = []
    for forward in forwards:
        with forward.again() as (model, batch), in_mode(model, training=False, grad=False):
            batches.append(batch)
            found.finite = found.finite and _finite(model(**fresh(batch)))
            alone = _alone(model, batch) if "attention_mask" in batch else []
            if alone:
                error, found.padding_bound = _padding(model, batch, alone, found.padding_bound or 0.0)
                found.padding_error = max(found.padding_error or 0.0, error)
            for name in FIXES:
                with install(name):
                    right = _finite(model(**fresh(batch)))
                    if right and alone:
                        error, bound = _padding(model, batch, _alone(model, batch), 0.0)
                        right = error <= bound
                found.fixes[name] = found.fixes.get(name, True) and right
    config = getattr(forwards[0].model, "config", None)
    if config is not None:
        found.exposure = predict(config, batches, attention=getattr(config, "_attn_implementation", "sdpa"))
    if found.padding_error is None:
        found.notes.append("no batch with input_ids and a 2D attention_mask: padding invariance was not looked at")


def _finite(output: Any) -> bool:
    found = [impurity(tensor) for _, tensor in judged_in(output)]
    return not any(state.nan or state.positive for state in found)


def _alone(model: nn.Module, batch: Mapping[str, Any]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per padded sequence: its ids, its real positions, and its hidden state or logits without the padding."""
    return [
        (ids, kept, hidden)
        for ids, kept in _sequences(batch)
        if (hidden := first_tensor(model(input_ids=ids, attention_mask=torch.ones_like(ids)))) is not None
    ]


def _sequences(batch: Mapping[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    if not isinstance(ids, Tensor) or not isinstance(mask, Tensor) or mask.shape != ids.shape or ids.dim() != 2:
        return
    for row in range(len(ids)):
        kept = mask[row].bool()
        if bool(kept.any()) and not bool(kept.all()):
            yield ids[row : row + 1, kept], kept


def _padding(
    model: nn.Module, batch: Mapping[str, Any], alone: Sequence[tuple[Tensor, Tensor, Tensor]], before: float
) -> tuple[float, float]:
    """The largest difference from the sequences alone, and the largest that is allowed; NaN is infinitely far."""
    together = first_tensor(model(**fresh(batch)))
    if together is None:
        return 0.0, before
    with suspended():
        exact = copy_to_cpu(model).double()
    rows = [row for row, mask in enumerate(batch["attention_mask"]) if bool(mask.any()) and not bool(mask.all())]
    error, bound = 0.0, before
    for row, (ids, kept, hidden) in zip(rows, alone, strict=True):
        with suspended():
            reference = first_tensor(exact(input_ids=ids.cpu(), attention_mask=torch.ones_like(ids).cpu()))
        if reference is None or together.shape[1] != len(kept):
            continue
        bound = max(bound, 2 * allowed_error(reference, hidden.dtype, [largest_error(hidden, reference)]))
        away = largest_error(together[row : row + 1, kept], hidden.detach().cpu().double())
        error = max(error, math.inf if math.isnan(away) else away)
    return error, bound
