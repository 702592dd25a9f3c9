"""The forward of one batch: cheaply first, in detail where something is not finite, against the CPU where all is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from mpsdiag.errors import CannotDecide
from mpsdiag.inputs.outputs import loss_of
from mpsdiag.tracing.origin import Origin
from mpsdiag.tracing.passes.compare import find_difference
from mpsdiag.tracing.passes.detail import explain_forward, failed
from mpsdiag.tracing.passes.indices import Indices
from mpsdiag.tracing.watch.device_label import device_of, is_plain_cpu
from mpsdiag.tracing.watch.events import Call
from mpsdiag.tracing.watch.flags import Flags, Reading
from mpsdiag.tracing.watch.repeat import Repeat, did_not_repeat


@dataclass(frozen=True)
class Traced:
    """What the trace of one batch gave: its loss, the origin if there is a finding, the call the value was born in.

    `bad`: there is a finding, or there would be one if it were looked at in detail.
    """

    loss: float | None
    origin: Origin | None = None
    call: Call | None = None
    bad: bool = False


class ForwardTrace:
    """Traces evaluations of one model: set up once, used for many batches; the modes are those in effect.

    Args:
        model: Any module that takes a batch as keyword arguments, on its device, in an emulation where one is wanted.
        compare: Compare finite results with float64 on the CPU. None: unless the model runs on a plain CPU itself.
    """

    def __init__(self, model: nn.Module, *, compare: bool | None = None) -> None:
        self._model = model
        self._compare = not is_plain_cpu(model) if compare is None else compare
        self._flags, self._indices, self._repeat = Flags(model), Indices(model), Repeat(model)
        # There an index out of range ends all work on the device: it has to be found before the forward.
        self._check_first = device_of(model).type == "cuda"

    def run(self, batch: Mapping[str, Any], *, in_detail: bool = True) -> Traced:
        """Run a batch, and find where its first non-finite value was born, or where finite ones go wrong.

        Args:
            batch: Checked, and on the model's device.
            in_detail: Look for the origin; without it only the loss is told, and whether the batch is bad.

        Raises:
            CannotDecide: The forward itself fails.
        """
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
                origin = did_not_repeat(self._model, "a forward", operation="forward")
        if origin is None and self._compare:
            origin, call = find_difference(self._model, batch)
        return Traced(loss, origin, call, bad=origin is not None)

    def _cheaply(self, batch: Mapping[str, Any]) -> tuple[float | None, Reading]:
        """The loss, and whether anything may be wrong."""
        try:
            with self._flags.watching():
                output = self._model(**batch)
        except IndexError:
            self._flags.read()
            return None, Reading(suspicious=True, certain=True, extra=[])
        except RuntimeError as problem:
            raise CannotDecide(failed(problem)) from problem
        loss = loss_of(output)
        losses = [loss] if loss is not None and loss.numel() == 1 else []
        reading = self._flags.read(*losses, *self._indices.extremes(batch))
        value = reading.extra[0] if losses else None
        if not self._indices.fit(batch, reading.extra[len(losses) :]):
            reading = Reading(suspicious=True, certain=True, extra=[])
        return value, reading
