"""An evaluation: each batch first cheaply, then in detail if something is not finite, otherwise against the CPU.

The detailed pass is repeated, each time with the faults found so far made finite, until none is left.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from mpsdiag.errors import BadInput, CannotDecide, first_line
from mpsdiag.inputs.installed import stock_mean
from mpsdiag.inputs.modules import in_mode, loss_of, mean
from mpsdiag.tracing.causes.arithmetic import device_only, division_by_zero, infinite_logits, overflow, unknown
from mpsdiag.tracing.causes.given_values import bad_inputs, bad_weights, no_labels
from mpsdiag.tracing.causes.indices import Indices, index_out_of_range
from mpsdiag.tracing.causes.masks import attention_over_nothing, mask_arithmetic
from mpsdiag.tracing.causes.root_cause import Candidate
from mpsdiag.tracing.origin import REMEDIES, Cause, Origin
from mpsdiag.tracing.passes.device_difference import find_difference
from mpsdiag.tracing.passes.model_inputs import REFUSALS, hints, refusal, shapes
from mpsdiag.tracing.watch.calls import TorchCall
from mpsdiag.tracing.watch.model_state import Repeat, device_of, did_not_repeat, is_plain_cpu, only_unwatched
from mpsdiag.tracing.watch.origin_search import Pass, first_terminal
from mpsdiag.tracing.watch.tensors import flat, fresh
from mpsdiag.tracing.watch.tracer import Patches, Tracer, flag_of, is_up, numbers

ROUNDS = 8
"""How many faults behind each other are searched for."""


@dataclass(frozen=True)
class Traced:
    """The trace of one batch: its loss, the origin if there is a finding, the call that gave the value.

    `bad`: there is a finding, or would be one if the batch were examined in detail.
    """

    loss: float | None
    origin: Origin | None = None
    call: TorchCall | None = None
    bad: bool = False


@dataclass
class TracedRun:
    """The trace of several batches or training steps: their losses (nats; NaN if missing), and the findings.

    For training: `grad_norms`. For an evaluation: `bad`, the numbers of the batches with a finding; `eval_loss`, the
    mean over sequences as printed by a Trainer that leaves nothing out (None without labels, or if a forward raised or
    gave no loss); `stock_eval_loss`, what this transformers prints by default.
    """

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    bad: list[int] = field(default_factory=list)
    eval_loss: float | None = None
    stock_eval_loss: float | None = None
    origin: Origin | None = None
    call: TorchCall | None = None


class ForwardTrace:
    """Traces evaluations of one model: set up once, used for many batches, in the current modes."""

    def __init__(self, model: nn.Module, *, compare: bool | None = None) -> None:
        self._model = model
        self._compare = not is_plain_cpu(model) if compare is None else compare
        self._indices, self._repeat = Indices(model), Repeat(model)
        # There an index out of range ends all work on the device, so it must be found before the forward.
        self._check_first = device_of(model).type == "cuda"
        self._refuses = device_of(model).type == "cpu"  # It raises by itself.

    def run(self, batch: Mapping[str, Any], *, in_detail: bool = True) -> Traced:
        """Run a batch, and find where its first non-finite value comes from, or where finite values go wrong."""
        if self._check_first and (outside := self._indices.explain(batch)) is not None:
            return Traced(None, outside, bad=True)
        self._repeat.take()
        loss, bad = self._cheaply(batch)
        if not in_detail:
            return Traced(loss, bad=bad)
        origin, call = None, None
        if bad:
            if (outside := self._indices.explain(batch)) is not None:
                return Traced(None, outside, bad=True)
            origin, call = explain_forward(self._model, batch, self._repeat)
            if origin is None:
                self._repeat.again()
                _, again = self._cheaply(batch)
                origin = only_unwatched(self._model) if again else did_not_repeat(self._model, "a forward")
        if origin is None and self._compare:
            origin, call = find_difference(self._model, batch)
        return Traced(loss, origin, call, bad=origin is not None)

    def _cheaply(self, batch: Mapping[str, Any]) -> tuple[float | None, bool]:
        """The loss, and whether anything is wrong."""
        try:
            with own_sentence(self._model, batch):
                output = self._model(**fresh(batch))
        except IndexError:
            return None, True
        flag, loss = flag_of(output), loss_of(output)
        losses = [loss] if loss is not None and loss.numel() == 1 else []
        asked = [] if self._refuses else self._indices.outside(batch)
        flags, values, outside = numbers([] if flag is None else [flag], losses, asked)
        return next(iter(values), None), not all(map(math.isfinite, values)) or any([*map(is_up, flags), *outside])


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


EXPLAINED = 4
"""How many bad batches are examined in detail: another batch may be bad for another reason."""


def trace_batches(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    *,
    compare: bool | None = None,
    grad: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> TracedRun:
    """Trace an evaluation. The origin is that of the first bad batch; origins of other causes are in its `also`."""
    found, origins = TracedRun(), list[Origin]()
    forward, came_to_loss = ForwardTrace(model, compare=compare), True
    with in_mode(model, training=False, grad=grad):
        for number, batch in enumerate(batches):
            progress(f"batch {number + 1} of {len(batches)}")
            traced = forward.run(batch, in_detail=len(found.bad) < EXPLAINED)
            came_to_loss = came_to_loss and traced.loss is not None
            found.losses.append(math.nan if traced.loss is None else traced.loss)
            if traced.bad:
                found.bad.append(number)
            if traced.origin is not None:
                found.call = found.call if origins else traced.call
                for origin in (traced.origin, *traced.origin.also):
                    alone = {"also": [], "evidence": {"batch": number, **origin.evidence}}
                    origins.append(origin.model_copy(update=alone))
    # Where a forward raises no Trainer comes to a mean, and leaves nothing out of one.
    if came_to_loss and any("labels" in batch for batch in batches):
        sizes = [_sequences(batch) for batch in batches]
        found.eval_loss = mean(found.losses, sizes)
        found.stock_eval_loss = stock_mean(found.losses, sizes)
        origins += _hidden_by_filter(found)
    found.origin = joined(origins)
    return found


def _hidden_by_filter(found: TracedRun) -> list[Origin]:
    """The printed eval_loss is finite only because batches are left out of it."""
    dropped = [number for number, loss in enumerate(found.losses) if not math.isfinite(loss)]
    if not dropped or found.stock_eval_loss is None or not math.isfinite(found.stock_eval_loss):
        return []
    hidden = Origin(
        cause="hidden_by_filter",
        operation="evaluation_loop",
        phase="evaluation",
        summary=f"transformers prints eval_loss {found.stock_eval_loss:.4f} here: {len(dropped)} of "
        f"{len(found.losses)} batches have a non-finite loss, and logging_nan_inf_filter leaves them out",
        evidence={
            "stock_eval_loss": found.stock_eval_loss,
            "eval_loss": found.eval_loss,
            "dropped_batches": dropped,
            "batches": len(found.losses),
        },
        remedy=REMEDIES["filter"],
    )
    return [hidden]


def _sequences(batch: Mapping[str, Any]) -> int:
    """The number of sequences in a batch."""
    sizes = (int(value.shape[0]) for value in batch.values() if isinstance(value, Tensor) and value.dim())
    return next(sizes, 1)


# The first rule that fits names the cause; `unknown` if none fits.
_RULES: Final[tuple[Callable[[Candidate], Origin | list[Origin] | None], ...]] = (
    bad_weights,
    bad_inputs,
    index_out_of_range,
    no_labels,
    mask_arithmetic,
    attention_over_nothing,
    infinite_logits,
    division_by_zero,
    overflow,
    device_only,
    unknown,
)


def explain(first: Candidate) -> list[Origin]:
    """Find the cause, or several if they meet in the same operation."""
    found = next(found for rule in _RULES if (found := rule(first)))
    return found if isinstance(found, list) else [found]


@contextmanager
def own_sentence(model: nn.Module, batch: Mapping[str, Any]) -> Iterator[None]:
    """Re-raise the exception of a forward with the keys and shapes of its batch; an index error passes unchanged."""
    try:
        yield
    except (*REFUSALS, IndexError, RuntimeError) as problem:
        general = isinstance(problem, IndexError) or type(problem) is RuntimeError
        if isinstance(problem, REFUSALS) or (general and hints(model, batch)):
            raise BadInput(refusal(model, batch, problem)) from problem
        if isinstance(problem, IndexError):
            raise
        raise CannotDecide(
            f"The forward itself fails, so nothing can be traced: {first_line(problem, 300)}. Its batch has "
            f"{shapes(batch)}."
        ) from problem


def joined(origins: Iterable[Origin]) -> Origin | None:
    """The first origin, with the origins of other causes in its `also`; None if there is none."""
    kept: dict[Cause, Origin] = {}
    for origin in origins:
        kept.setdefault(origin.cause, origin)
    if not kept:
        return None
    first, *others = kept.values()
    return first.model_copy(update={"also": others})
