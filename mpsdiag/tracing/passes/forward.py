"""The forward of one batch: cheaply first, in detail where something is not finite, against the CPU where all is.

In detail means again and again: each time with the faults found so far made finite, until none is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mpsdiag.errors import BadInput
from mpsdiag.inputs.outputs import loss_of
from mpsdiag.tracing.causes import Candidate, explain
from mpsdiag.tracing.origin import Origin, joined
from mpsdiag.tracing.passes.device_difference import find_difference
from mpsdiag.tracing.passes.indices import Indices
from mpsdiag.tracing.passes.model_inputs import own_sentence, refusal
from mpsdiag.tracing.watch.flags import Flags, Reading
from mpsdiag.tracing.watch.model_state import Repeat, device_of, did_not_repeat, is_plain_cpu, only_unwatched
from mpsdiag.tracing.watch.operations import TorchCall
from mpsdiag.tracing.watch.origin_search import Pass, first_terminal
from mpsdiag.tracing.watch.patched_rerun import Patches
from mpsdiag.tracing.watch.tensors import flat, fresh
from mpsdiag.tracing.watch.tracer import Tracer

ROUNDS = 8
"""At most this many faults behind each other are brought to light."""


@dataclass(frozen=True)
class Traced:
    """What the trace of one batch gave: its loss, the origin if there is a finding, the call that gave the value.

    `bad`: there is a finding, or there would be one if it were looked at in detail.
    """

    loss: float | None
    origin: Origin | None = None
    call: TorchCall | None = None
    bad: bool = False


@dataclass
class TracedRun:
    """What several batches or training steps gave: their losses (nats; NaN where there is none), and what was found.

    Of training: `grad_norms`. Of an evaluation: `bad`, the numbers of the batches with a finding; `eval_loss`, the mean
    over sequences, as a Trainer that leaves nothing out would print it; None without labels, and where a forward raised
    or gave no loss; `stock_eval_loss`, what this transformers prints by default.
    """

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    bad: list[int] = field(default_factory=list)
    eval_loss: float | None = None
    stock_eval_loss: float | None = None
    origin: Origin | None = None
    call: TorchCall | None = None


class ForwardTrace:
    """Traces evaluations of one model: set up once, used for many batches; the modes are those in effect."""

    def __init__(self, model: nn.Module, *, compare: bool | None = None) -> None:
        self._model = model
        self._compare = not is_plain_cpu(model) if compare is None else compare
        self._flags, self._indices, self._repeat = Flags(model), Indices(model), Repeat(model)
        # There an index out of range ends all work on the device: it has to be found before the forward.
        self._check_first = device_of(model).type == "cuda"

    def run(self, batch: Mapping[str, Any], *, in_detail: bool = True) -> Traced:
        """Run a batch, and find where its first non-finite value comes from, or where finite ones go wrong."""
        if self._check_first and (outside := self._indices.explain(batch)) is not None:
            return Traced(None, outside, bad=True)
        self._repeat.take()
        loss, reading = self._cheaply(batch)
        if not in_detail:
            return Traced(loss, bad=reading.certain)
        origin, call = None, None
        if reading.suspicious:
            if (outside := self._indices.explain(batch)) is not None:
                return Traced(None, outside, bad=True)
            origin, call = explain_forward(self._model, batch, self._repeat)
            if origin is None and reading.certain:
                self._repeat.again()
                _, second = self._cheaply(batch)
                once = did_not_repeat(self._model, "a forward", operation="forward")
                origin = only_unwatched(self._model) if second.certain else once
        if origin is None and self._compare:
            origin, call = find_difference(self._model, batch)
        return Traced(loss, origin, call, bad=origin is not None)

    def _cheaply(self, batch: Mapping[str, Any]) -> tuple[float | None, Reading]:
        """The loss, and whether anything may be wrong."""
        try:
            with own_sentence(self._model, batch):
                output = self._flags.forward(batch)
        except IndexError:
            self._flags.read()
            return None, Reading(suspicious=True, certain=True, extra=[])
        loss = loss_of(output)
        losses = [loss] if loss is not None and loss.numel() == 1 else []
        reading = self._flags.read(*losses, *self._indices.extremes(batch))
        value = reading.extra[0] if losses else None
        if not self._indices.fit(batch, reading.extra[len(losses) :]):
            reading = Reading(suspicious=True, certain=True, extra=[])
        return value, reading


def explain_forward(
    model: nn.Module, batch: Mapping[str, Any], repeat: Repeat
) -> tuple[Origin | None, TorchCall | None]:
    """Run a batch in detail, as often as faults come to light: what was found, and the call that gave the first."""
    origins: list[Origin] = []
    first_call: TorchCall | None = None
    patches = Patches()
    for _ in range(ROUNDS):
        seen = _detailed_pass(model, batch, repeat, patches)
        terminal = first_terminal(seen)
        if terminal is None:
            break
        candidate = Candidate(terminal, flat(batch), model, grad=torch.is_grad_enabled())
        found = explain(candidate)
        if not origins:
            first_call = candidate.call
            for origin in found if seen.spread else ():
                origin.evidence["spread"] = seen.spread
        origins += found
        if terminal.kind == "error":
            break
        patches = patches.behind(terminal, {origin.cause for origin in found})
    return joined(origins), first_call


def _detailed_pass(model: nn.Module, batch: Mapping[str, Any], repeat: Repeat, patches: Patches) -> Pass:
    """One detailed pass; an index out of range ends it and is its last event."""
    repeat.again()
    given = fresh(batch)
    tracer = Tracer(model, given, patches)
    try:
        with own_sentence(model, batch), tracer.watching():
            model(**given)
    except IndexError as problem:
        if not tracer.seen.events or tracer.seen.events[-1].error is None:
            raise BadInput(refusal(model, batch, problem)) from problem
    return tracer.seen
