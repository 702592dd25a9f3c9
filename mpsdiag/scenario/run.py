"""The scenario: HF Trainer, a batch for the task of the model, a few training steps, a watched evaluation.

The losses are read batch by batch, because a mean can hide what happened to one of them. The watch covers fully masked
rows that reach attention, and the first operation that gives a non-finite value. SDPA is a function, not a module, so
module hooks alone are one step late: they only show in which layer a call is made. Flags stay on the device until they
are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import __version__ as transformers_version

from mpsdiag.findings import Exposure
from mpsdiag.inputs.installed import as_on_mps, stock_mean
from mpsdiag.inputs.models import attention_for, missing_note, model_notes
from mpsdiag.inputs.modules import ModulePath, first_tensor, mean, to_cpu
from mpsdiag.inputs.nonfinite import unread_nonfinite
from mpsdiag.invariance.first_label import first_label
from mpsdiag.invariance.measure import padding_invariance
from mpsdiag.scenario.exposure import predict, training_notes
from mpsdiag.scenario.preparation import PreparedScenario, prepare
from mpsdiag.scenario.reference import (
    compare,
    cpu_copy,
    real_positions,
    reference,
    require_output,
    stock_cpu,
    stock_loss,
)
from mpsdiag.scenario.scenario import FirstNonfinite, Measured, Scenario
from mpsdiag.sdpa.watch import SDPA, SdpaCall, SdpaWatch, per_query


@dataclass(frozen=True)
class WatchedOperation:
    """One operation that was watched; `bad_rows` is a device scalar: (sequence, query) rows that are not finite."""

    module: str
    layer: int | None
    operation: str
    bad_rows: Tensor


@dataclass
class Sighting:
    """What one forward showed, in order."""

    events: list[WatchedOperation] = field(default_factory=list)
    layer_rows: list[Tensor] = field(default_factory=list)
    """Per decoder layer, (sequences, positions) bool: the hidden state there is non-finite."""
    dead: list[Tensor] = field(default_factory=list)
    """Per SDPA call with a mask, a device scalar: its fully masked rows, as `SdpaCall` counts them."""
    noncontiguous: list[bool] = field(default_factory=list)
    """Per SDPA call: query, key or value is not contiguous."""
    masked: list[bool] = field(default_factory=list)
    lowest: list[Tensor] = field(default_factory=list)
    """Per SDPA call with a floating mask, a device scalar: its lowest value (-inf: keys are fully excluded)."""


class Observer(SdpaWatch):
    """Watches the forwards of one model; see `SdpaWatch` for where to enter it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._path = ModulePath(model)
        self.sighting = Sighting()

    def saw_sdpa(self, call: SdpaCall, result: Tensor) -> None:
        """Record one call of attention and its result."""
        if not self._path:  # It comes from another model, such as a trainer's CPU copy.
            return
        rows = call.masked_rows()
        self.sighting.masked.append(rows is not None)
        self.sighting.noncontiguous.append(not call.contiguous)
        if rows is not None:
            self.sighting.dead.append(rows.sum())
        if call.attn_mask is not None and call.attn_mask.is_floating_point():
            self.sighting.lowest.append(call.attn_mask.min())
        self._record(result, SDPA)

    def _record(self, output: Tensor, operation: str) -> None:
        self.sighting.events.append(
            WatchedOperation(
                module=self._path.module,
                layer=self._path.layer,
                operation=operation,
                bad_rows=per_query((~torch.isfinite(output)).any(-1)).sum(),
            )
        )

    def _leave_module(self, module: nn.Module, output: Any) -> None:
        hidden = first_tensor(output)
        if hidden is not None and hidden.is_floating_point() and hidden.dim() >= 2:
            self._record(hidden, type(module).__name__)
            if self._path.layer_of(module) is not None:
                self.sighting.layer_rows.append((~torch.isfinite(hidden)).any(-1))

    @contextmanager
    def watching(self) -> Iterator[Observer]:
        """Watch until the block ends; the hooks are always removed."""
        with self._path.followed(self._leave_module), self:
            yield self

    def collect(self) -> Sighting:
        """Return what was seen since the last call, and start again."""
        seen, self.sighting = self.sighting, Sighting()
        return seen


def run_scenario(scenario: Scenario, *, invariance: bool = False, causes: bool = True) -> Measured:
    """Train a few steps, evaluate, compare with the float64 reference; BadInput as `prepare`.

    `invariance` compares padded batches with each sequence alone too, and `causes` says why they differ, if they do.
    """
    with ExitStack() as stack:
        stack.enter_context(as_on_mps(scenario.emulation))
        prepared = stack.enter_context(prepare(scenario))
        exposure = predict(
            prepared.model.config,
            prepared.eval_batches,
            attention=attention_for(prepared.model, scenario.attn_implementation),
            notes=[*training_notes(prepared.model), *_length_notes(prepared), *model_notes(prepared.model)],
        )
        # Before any training: a step that goes wrong spoils the weights.
        unpadded = None
        if invariance:
            unpadded = padding_invariance(
                prepared.model,
                prepared.eval_batches[0],
                padding_side=scenario.padding_side,
                pad_token_id=getattr(prepared.processor, "tokenizer", prepared.processor).pad_token_id,
                causes=causes,
                sequences=2,
            )
        first_loss = _first_train_loss_on_cpu(prepared)
        train_losses, grad_norms = _train(prepared)
        truth = reference(prepared.model, prepared.eval_batches, prepared.trainer, prepared.task)
        eval_loss, losses = _evaluate(prepared)
        logits, sightings = _watched_evaluation(prepared)
        difference = compare(logits, truth)
        if unpadded is not None and prepared.task.name == "text-generation":
            unpadded.first_label = first_label(prepared.model, prepared.eval_batches, logits)
    dead = sum(max(map(int, seen.dead), default=0) for seen in sightings)
    if exposure.rows and exposure.reach_sdpa and not dead:
        exposure = unseen(exposure, prepared.model, sightings)
    sizes = [len(batch["input_ids"]) for batch in prepared.eval_batches]
    real = [int(real_positions(batch).sum()) for batch in prepared.eval_batches]
    first, rows = _first_place(sightings)
    weights = missing_note(prepared.model), unread_nonfinite(prepared.model)[1]
    if train_losses and not math.isfinite(train_losses[0]):
        # The weights are spoilt by now: what matters is where the first training step went wrong.
        first, rows = first_nonfinite_in_training(scenario)
    return Measured(
        train_losses=train_losses,
        grad_norms=grad_norms,
        eval_losses=losses,
        eval_loss=eval_loss,
        stock_eval_loss=stock_mean(losses, sizes),
        reference_eval_loss=mean(truth.losses, sizes),
        reference_first_train_loss=first_loss,
        # From the batches: the Trainer's own mean is rounded to float32.
        loss_moved_by=mean(losses, sizes) - mean(truth.losses, sizes),
        nonfinite_batches=sum(not math.isfinite(loss) for loss in losses),
        dead_rows=dead,
        sdpa_calls=sum(len(seen.masked) for seen in sightings),
        noncontiguous_dead_calls=sum(
            loose for seen in sightings for loose, masked in zip(seen.noncontiguous, seen.masked, strict=True) if masked
        ),
        exposure=exposure,
        first_nonfinite=first,
        nonfinite_rows=rows,
        max_abs_logit_diff=difference.real,
        bound=truth.bound_real,
        exact=difference.everywhere <= truth.bound_all,
        real_tokens=sum(real),
        pad_tokens=sum(batch["input_ids"].numel() for batch in prepared.eval_batches) - sum(real),
        missing_weights="; ".join(filter(None, weights)) or None,
        invariance=unpadded,
    )


def first_nonfinite_in_training(scenario: Scenario) -> tuple[FirstNonfinite | None, list[list[int]]]:
    """Build the scenario anew, and watch the forward of its first training batch, with gradients; as `_first_place`."""
    with ExitStack() as stack:
        stack.enter_context(as_on_mps(scenario.emulation))
        prepared = stack.enter_context(prepare(scenario))
        prepared.model.train()
        observer = Observer(prepared.model)
        with observer.watching(), torch.enable_grad():
            prepared.trainer.compute_loss(prepared.model, dict(prepared.train_batches[0]))
        return _first_place([observer.collect()])


def unseen(exposure: Exposure, model: nn.Module, sightings: Sequence[Sighting]) -> Exposure:
    """The prediction for a run in which none of its rows reached attention, with the reason from the masks."""
    lowest = [float(value) for seen in sightings for value in seen.lowest]
    name = f"{type(model).__name__} of transformers {transformers_version}"
    if lowest and min(lowest) > -math.inf:
        why = f"{name} writes finite masks (down to {min(lowest):.3g}), in which no row is fully masked"
    elif any(any(seen.masked) for seen in sightings):
        why = f"{name} passed attention masks without fully masked rows"
    else:
        why = f"{name} passed no mask to F.scaled_dot_product_attention"
    return exposure.model_copy(update={"reach_sdpa": False, "notes": [*exposure.notes, why]})


def _length_notes(prepared: PreparedScenario) -> list[str]:
    if prepared.max_length == prepared.scenario.max_length:
        return []
    return [f"the model has positions for {prepared.max_length} tokens: longer texts are cut to that"]


def _first_train_loss_on_cpu(prepared: PreparedScenario) -> float:
    if prepared.scenario.max_steps == 0:
        return math.nan
    with stock_cpu():
        return stock_loss(cpu_copy(prepared.model), to_cpu(prepared.train_batches[0]), prepared.trainer)


def _train(prepared: PreparedScenario) -> tuple[list[float], list[float]]:
    if prepared.scenario.max_steps == 0:
        return [], []
    prepared.trainer.train()
    steps = [entry for entry in prepared.trainer.state.log_history if "loss" in entry]
    return [float(entry["loss"]) for entry in steps], [float(entry["grad_norm"]) for entry in steps]


def _evaluate(prepared: PreparedScenario) -> tuple[float, list[float]]:
    """The Trainer's own evaluation: eval_loss, and the loss of every batch."""
    prepared.losses.clear()
    metrics = prepared.trainer.evaluate()
    return float(metrics["eval_loss"]), [float(loss) for loss in prepared.losses]


def _watched_evaluation(prepared: PreparedScenario) -> tuple[list[Tensor], list[Sighting]]:
    """The same batches again through the Trainer's prediction step, watched, for logits and sightings."""
    prepared.model.train(mode=False)
    observer = Observer(prepared.model)
    logits, sightings = [], []
    with observer.watching():
        for batch in prepared.eval_batches:
            _, outputs, _ = prepared.trainer.prediction_step(prepared.model, batch, prediction_loss_only=False)
            sightings.append(observer.collect())
            logits.append(require_output(prepared.task.compared(outputs), prepared.model))
    return logits, sightings


def _first_place(sightings: Sequence[Sighting]) -> tuple[FirstNonfinite | None, list[list[int]]]:
    """The place, and per layer the number of non-finite sequences at each position; None and [] if all is finite."""
    for number, seen in enumerate(sightings):
        for event in seen.events:
            rows = int(event.bad_rows)
            if rows:
                place = FirstNonfinite(
                    batch=number, layer=event.layer, module=event.module, operation=event.operation, rows=rows
                )
                return place, [bad.sum(0).tolist() for bad in seen.layer_rows]
    return None, []
