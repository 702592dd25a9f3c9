"""The forward of one batch: cheap first, and in detail where something is not finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mpsdiag.diagnosis.diagnosis import Advice
from mpsdiag.diagnosis.tracing.causes import Birth, Explanation, explain
from mpsdiag.diagnosis.tracing.chain import first_terminal
from mpsdiag.diagnosis.tracing.events import Call, Pass, Terminal
from mpsdiag.diagnosis.tracing.flags import Flags, Reading
from mpsdiag.diagnosis.tracing.healing import Healing
from mpsdiag.diagnosis.tracing.indices import Indices
from mpsdiag.diagnosis.tracing.origin import Origin, Phase
from mpsdiag.diagnosis.tracing.place import described, device_of
from mpsdiag.diagnosis.tracing.repeat import Repeat, in_mode
from mpsdiag.diagnosis.tracing.tensors import bad_rows, facts
from mpsdiag.diagnosis.tracing.tracer import Tracer
from mpsdiag.errors import CannotDecide

ROUNDS = 8
"""At most this many faults behind each other are brought to light."""


@dataclass(frozen=True)
class Traced:
    """What the trace of one batch gave: its loss, the origin if it is not finite, the call the value was born in.

    `suspicious`: not finite, explained or not.
    """

    loss: float | None
    origin: Origin | None
    call: Call | None = None
    suspicious: bool = False


class ForwardTrace:
    """Traces forwards of one model: set up once, used for many batches inside `ready`.

    Args:
        model: Any module that takes a batch as keyword arguments.
        training: Run it in training mode.
        grad: With gradients wanted, as in training.
    """

    def __init__(self, model: nn.Module, *, training: bool = False, grad: bool = False) -> None:
        self._model, self._training, self._grad = model, training, grad
        self._flags, self._indices, self._repeat = Flags(model), Indices(model), Repeat(model)
        # There an index out of range ends all work on the device: it has to be found before the forward.
        self._check_first = device_of(model).type == "cuda"

    @contextmanager
    def ready(self) -> Iterator[ForwardTrace]:
        """Set the modes and watch, until the block ends; everything is put back then."""
        with in_mode(self._model, training=self._training, grad=self._grad), self._flags.watching():
            yield self

    def looking_away(self) -> AbstractContextManager[None]:
        """A block in which the model may run unwatched."""
        return self._flags.paused()

    def run(self, batch: Mapping[str, Any], *, in_detail: bool = True) -> Traced:
        """Run a batch, and find where its first non-finite value was born.

        Args:
            batch: Checked, and on the model's device.
            in_detail: Look at a suspicious batch in detail; without it only the loss is told, and `suspicious`.

        Raises:
            CannotDecide: The forward itself fails.
        """
        if self._check_first and (outside := self._indices.explain(batch)) is not None:
            return Traced(None, outside, suspicious=True)
        self._repeat.take()
        value, reading = self._cheaply(batch)
        if not reading.suspicious:
            return Traced(value, None)
        if not in_detail:
            return Traced(value, None, suspicious=reading.certain)
        outside = self._indices.explain(batch)
        if outside is not None:
            return Traced(None, outside, suspicious=True)
        with self._flags.paused():
            origin, call = explain_forward(self._model, batch, self._repeat, grad=self._grad)
        if origin is None and reading.certain:
            origin = _not_reproduced(self._model)
        return Traced(value, origin, call, suspicious=origin is not None)

    def _cheaply(self, batch: Mapping[str, Any]) -> tuple[float | None, Reading]:
        """The loss, and whether anything may be wrong."""
        try:
            output = self._model(**batch)
        except IndexError:
            self._flags.read()
            return None, Reading(suspicious=True, certain=True, extra=[])
        except RuntimeError as problem:
            raise CannotDecide(failed(problem)) from problem
        loss = getattr(output, "loss", None)
        losses = [loss] if isinstance(loss, Tensor) else []
        reading = self._flags.read(*losses, *self._indices.extremes(batch))
        value = reading.extra[0] if losses else None
        if not self._indices.fit(batch, reading.extra[len(losses) :]):
            reading = Reading(suspicious=True, certain=True, extra=[])
        return value, reading


def explain_forward(
    model: nn.Module, batch: Mapping[str, Any], repeat: Repeat, *, grad: bool
) -> tuple[Origin | None, Call | None]:
    """Run a batch in detail, as often as faults come to light; the modes are those in effect.

    Returns:
        The first origin with the others in `also`, and the call it was born in; None if all came out finite.
    """
    origins: list[Origin] = []
    first_call: Call | None = None
    healing = Healing()
    for _ in range(ROUNDS):
        seen = detailed_pass(model, batch, repeat, healing)
        terminal = first_terminal(seen)
        if terminal is None:
            break
        birth = Birth(terminal, seen, batch, model, grad)
        explanations = explain(birth)
        if not origins:
            first_call = birth.call
        spread = seen.spread if not origins else []
        for explanation in explanations:
            if explanation.cause not in {origin.cause for origin in origins}:
                origins.append(_origin(birth, explanation, spread))
        if terminal.kind == "error":
            break
        healing = _heal(healing, terminal, {explanation.cause for explanation in explanations})
    if not origins:
        return None, None
    return origins[0].model_copy(update={"also": origins[1:]}), first_call


def detailed_pass(
    model: nn.Module, batch: Mapping[str, Any], repeat: Repeat, healing: Healing | None = None
) -> Pass:
    """One detailed pass; an operation that raises ends it and is its last event.

    Raises:
        CannotDecide: The forward fails with something else than an index out of range.
    """
    repeat.again()
    tracer = Tracer(model, batch, healing)
    try:
        with tracer.watching():
            model(**batch)
    except IndexError:
        if not tracer.seen.events or tracer.seen.events[-1].error is None:
            raise
    except RuntimeError as problem:
        raise CannotDecide(failed(problem)) from problem
    return tracer.seen


def _heal(healing: Healing, terminal: Terminal, causes: set[str]) -> Healing:
    if terminal.kind in ("weight", "batch"):
        return Healing(healing.outputs, healing.attention, given=True)
    if causes & {"dead_rows"} or (causes == {"bad_mask"} and terminal.kind == "nan"):
        healing = Healing(healing.outputs, attention=True, given=healing.given)
    return healing.also_output(terminal.event.index)


def _origin(birth: Birth, explanation: Explanation, spread: list[dict[str, Any]]) -> Origin:
    event = birth.event
    phase: Phase = "data" if explanation.cause in ("bad_inputs", "no_labels") else "forward"
    evidence = dict(explanation.evidence)
    output = birth.output
    if output is not None:
        evidence["output"] = facts(output, event.operation) | {"non_finite": bad_rows(output)}
    if birth.inputs:
        evidence["inputs"] = [facts(tensor, name) for name, tensor in birth.inputs]
    if spread:
        evidence["spread"] = spread
    return Origin(
        cause=explanation.cause,
        layer=event.layer,
        module=event.module,
        operation=event.operation,
        phase=phase,
        summary=explanation.summary,
        evidence=evidence,
        remedy=explanation.remedy,
    )


def _not_reproduced(model: nn.Module) -> Origin:
    return Origin(
        cause="unknown",
        layer=None,
        module="",
        operation="forward",
        summary="a forward was not finite, and the same forward run again is: something here does not repeat (memory "
        "that nobody wrote, or a kernel that is not deterministic)",
        evidence={"device": described(model)},
        remedy=Advice(
            text="Run it several times, and on the CPU; a device that gives other values each time has a defect.",
            commands=["mpsdiag check --level 3", "mpsdiag trace ... --device cpu"],
        ),
    )


def failed(problem: BaseException) -> str:
    """One sentence for a forward that raises."""
    first = (str(problem).strip().splitlines() or [type(problem).__name__])[0][:300].rstrip(".")
    return f"The forward itself fails, so nothing can be traced: {first}."
