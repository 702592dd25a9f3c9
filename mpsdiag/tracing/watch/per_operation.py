"""Judge every operation of a module by itself: on the device, on the CPU, and in float64, with the same inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mpsdiag.inputs.modules import ModulePath
from mpsdiag.sdpa.bound import allowed_error, largest_error
from mpsdiag.tracing.watch.events import Call
from mpsdiag.tracing.watch.operations import SDPA, writes_in_place
from mpsdiag.tracing.watch.replay import in_float64, replay
from mpsdiag.tracing.watch.scores import rows_over_nothing
from mpsdiag.tracing.watch.tensors import facts, tensors_in


@dataclass(frozen=True)
class Verdict:
    """An operation that is off: `distance` from float64, and how far the CPU is in the same dtype."""

    module: str
    call: Call
    distance: float
    cpu_distance: float
    allowed: float

    @property
    def operation(self) -> str:
        """Its name."""
        return self.call.operation

    @property
    def excess(self) -> float:
        """How many times further than it may be."""
        return self.distance / self.allowed if self.allowed else float("inf")

    def evidence(self) -> dict[str, Any]:
        """What is told about it."""
        return {
            "name": self.operation,
            "difference": self.distance,
            "cpu_difference": self.cpu_distance,
            "inputs": [facts(tensor, name) for name, tensor in tensors_in(self.call.named)],
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
        self._path = ModulePath(model)
        self._inside = inside
        self._leave_out = leave_out

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch until the block ends."""
        with self._path.followed(), self:
            yield

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # What writes in place has lost its inputs.
        looked_at = (
            self._inside in self._path
            and not any(module in self._path for module in self._leave_out)
            and not writes_in_place(func, kwargs)
        )
        if looked_at and isinstance(result, Tensor) and result.is_floating_point():
            self._judge(Call(func, args, kwargs, result), result)
        return result

    def _judge(self, call: Call, result: Tensor) -> None:
        plain, exact = replay(call), in_float64(call)
        if plain is None or exact is None or plain.shape != result.shape or exact.shape != result.shape:
            return
        mine = result.detach().cpu()
        if call.operation == SDPA and (dead := rows_over_nothing(call, result)) is not None:
            alive = ~dead.cpu()
            mine, plain, exact = mine[alive], plain[alive], exact[alive]
        if not exact.numel():
            return
        distance, cpu_distance = largest_error(mine, exact), largest_error(plain, exact)
        allowed = allowed_error(exact, result.dtype, [cpu_distance])
        verdict = Verdict(self._path.module, call, distance, cpu_distance, allowed)
        if distance > allowed and (self.worst is None or verdict.excess > self.worst.excess):
            self.worst = verdict
