"""Judge every operation of a module by itself: on the device, on the CPU, and in float64, with the same inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mpsdiag.diagnosis.hooks import hooked
from mpsdiag.diagnosis.tracing.events import Call
from mpsdiag.diagnosis.tracing.operations import SDPA, arguments, operation_name, writes_in_place
from mpsdiag.diagnosis.tracing.replay import in_float64, replay
from mpsdiag.diagnosis.tracing.scores import rows_over_nothing
from mpsdiag.diagnosis.tracing.tensors import facts, tensors_in


@dataclass(frozen=True)
class Verdict:
    """An operation that is off: `distance` from float64, and how far the CPU is in the same dtype."""

    module: str
    operation: str
    call: Call
    distance: float
    cpu_distance: float
    allowed: float

    def evidence(self) -> dict[str, Any]:
        """What is told about it."""
        named = arguments(self.operation, self.call.args, self.call.kwargs)
        return {
            "name": self.operation,
            "difference": self.distance,
            "cpu_difference": self.cpu_distance,
            "inputs": [facts(tensor, name) for name, tensor in tensors_in(named)],
        }


class Judge(TorchFunctionMode):
    """Watches one module, and keeps the operation that is furthest beyond what it may be.

    Args:
        model: The model that will run.
        inside: The module to look into.
        leave_out: Modules in it that are not looked into.
    """

    def __init__(self, model: nn.Module, inside: nn.Module, leave_out: Collection[nn.Module] = ()) -> None:
        super().__init__()
        self.worst: Verdict | None = None
        self._names = {module: name for name, module in model.named_modules()}
        self._inside = inside
        self._leave_out = set(leave_out)
        self._path: list[nn.Module] = []

    @contextmanager
    def watching(self) -> Iterator[Judge]:
        """Watch until the block ends."""
        try:
            with hooked(self._names, self._enter, self._leave, always=True), self:
                yield self
        finally:
            self._path.clear()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # What writes in place has lost its inputs.
        looked_at = (
            self._inside in self._path
            and not any(module in self._leave_out for module in self._path)
            and not writes_in_place(func, kwargs)
        )
        if looked_at and isinstance(result, Tensor) and result.is_floating_point():
            self._judge(Call(func, args, kwargs, result), result)
        return result

    def _judge(self, call: Call, result: Tensor) -> None:
        operation = operation_name(call.func)
        plain = replay(call)
        named = arguments(operation, call.args, call.kwargs)
        exact = in_float64(call)
        if plain is None or exact is None or plain.shape != result.shape or exact.shape != result.shape:
            return
        mine = result.detach().cpu()
        if operation == SDPA and (dead := rows_over_nothing(SDPA, named, result)) is not None:
            alive = ~dead.cpu()
            mine, plain, exact = mine[alive], plain[alive], exact[alive]
        if not exact.numel():
            return
        distance, cpu_distance = (float((x.double() - exact).abs().max()) for x in (mine, plain))
        # Where the CPU is exact by chance, one unit in the last place is no fault.
        allowed = 2 * cpu_distance + torch.finfo(result.dtype).eps * float(exact.abs().max())
        verdict = Verdict(self._names[self._path[-1]], operation, call, distance, cpu_distance, allowed)
        if distance > allowed and (self.worst is None or _excess(verdict) > _excess(self.worst)):
            self.worst = verdict

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._path.append(module)

    def _leave(self, _module: nn.Module, _: Any, __: Any) -> None:
        self._path.pop()


def _excess(verdict: Verdict) -> float:
    return verdict.distance / verdict.allowed if verdict.allowed else float("inf")
