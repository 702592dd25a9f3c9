"""A device that gives finite but wrong numbers: the first layer, and its operation, that departs from the reference.

The reference is float64 on the CPU; the bound is that of `sdpa/float64.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mpsdiag.emulation.mode import suspended
from mpsdiag.fixes.anatomy import runs_eager
from mpsdiag.inputs.modules import (
    ModulePath,
    copy_to_cpu,
    first_tensor,
    mapped,
    numbered_layers,
    to_float64,
    uncompiled,
)
from mpsdiag.invariance.alone_truth import in_attention
from mpsdiag.sdpa.float64 import WideSoftmax, allowed_error, largest_error
from mpsdiag.sdpa.watch import SDPA
from mpsdiag.tracing.origin import REMEDIES, Origin
from mpsdiag.tracing.watch.calls import TorchCall, fully_masked_rows, in_float64, moved, replay, writes_in_place
from mpsdiag.tracing.watch.model_state import FUSED, device_label, real_positions
from mpsdiag.tracing.watch.tensors import facts, flat, fresh, judged_in, tensors_in

logger = logging.getLogger(__name__)

Hidden = tuple[nn.Module | None, Tensor]
"""The output of a layer, or (None) the logits."""


@dataclass(frozen=True)
class TensorDifference:
    """Distance of one tensor from float64 at real positions, and the allowed distance; `module` None: the logits."""

    module: nn.Module | None
    layer: int | None
    distance: float
    bound: float

    @property
    def wrong(self) -> bool:
        """Whether it is further than allowed; a NaN is infinitely far."""
        return not self.distance <= self.bound


def find_difference(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Origin | None, TorchCall | None]:
    """Compare an evaluation of a batch with the CPU: where it departs from the reference, and the call that does."""
    try:
        differences = _differences(model, batch)
    except (RuntimeError, NotImplementedError, TypeError) as problem:
        logger.warning("Not compared with the CPU: the model does not run there in float64 (%s).", problem)
        return None, None
    if not all(math.isfinite(difference.bound) for difference in differences):
        logger.warning("Not compared with the CPU: its own results are not finite, in float64 or in this dtype.")
        return None, None
    if not differences or not differences[-1].wrong:
        return None, None
    first = next(difference for difference in differences if difference.wrong)
    inside, leave_out = (first.module, []) if first.module else (model, list(numbered_layers(model)))
    judge = PerOperation(model, inside, leave_out)
    with judge.watching():
        model(**fresh(batch))
    call = None if judge.worst is None else judge.worst.call
    return _origin(model, differences, first, judge.worst), call


def _origin(
    model: nn.Module, differences: Sequence[TensorDifference], first: TensorDifference, worst: WrongOperation | None
) -> Origin:
    device = device_label(model)
    inside = first.module or model
    module = worst.module if worst else next(name for name, m in model.named_modules() if m is inside)
    operation = worst.call.operation if worst else type(inside).__name__
    where = "no layer, but what follows the layers," if first.layer is None else f"layer {first.layer}"
    return Origin(
        cause="wrong_device",
        layer=first.layer,
        module=module,
        operation=operation,
        summary=f"all values are finite, but wrong on {device}: {where} is the first to leave the float64 reference, "
        f"by {first.distance:.3g} (allowed: {first.bound:.3g}); {operation} differs most in it",
        evidence={
            "device": device,
            "logits": {"difference": differences[-1].distance, "bound": differences[-1].bound},
            "layers": [{"layer": d.layer, "difference": d.distance, "bound": d.bound} for d in differences[:-1]],
            "operation": None if worst is None else worst.evidence(),
        },
        remedy=REMEDIES["wrong_device"],
    )


def _differences(model: nn.Module, batch: Mapping[str, Any]) -> list[TensorDifference]:
    """The distance of every layer in the order they ran, and finally of the logits."""
    mine, given_to_all = _hidden(model, batch), flat(batch)
    names = {module: name for name, module in model.named_modules()}
    numbers = numbered_layers(model)
    with suspended(), torch.no_grad():
        twin = copy_to_cpu(model)
        with WideSoftmax(rounded=runs_eager(model)), in_attention(twin, "eager"):
            eager = _hidden(twin, mapped(dict(batch), moved))
        wide = mapped(dict(batch), partial(moved, dtype=torch.float64))
        with WideSoftmax(), in_attention(twin, "sdpa"):
            exact = _hidden(to_float64(twin), wide)
    found = []
    for (module, device), (_, rounded), (_, right) in zip(mine, eager, exact, strict=False):
        rows = real_positions(model, "decoder" if module is None else names[module], given_to_all)
        rows = None if rows is None or rows.shape != right.shape[:-1] else rows
        error = largest_error(rounded, right, rows)
        bound = allowed_error(right if rows is None else right[rows], rounded.dtype, [error])
        number = None if module is None else numbers[module]
        found.append(TensorDifference(module, number, largest_error(device, right, rows), bound))
    return found


def _hidden(model: nn.Module, batch: Mapping[str, Any]) -> list[Hidden]:
    """The outputs of the layers in the order they run, and finally the logits, on the CPU."""
    found: list[Hidden] = []

    def keep(module: nn.Module, _args: Any, output: Any) -> None:
        hidden = first_tensor(output)
        if hidden is not None:
            found.append((module, hidden.detach().cpu()))

    layers = [layer for layer in numbered_layers(model) if not isinstance(layer, FUSED)]
    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        output = model(**fresh(batch))
    finally:
        for handle in handles:
            handle.remove()
    logits = [tensor.detach().cpu() for name, tensor in judged_in(output) if name != "loss"]
    return [*found, *((None, tensor) for tensor in logits[:1])]


@dataclass(frozen=True)
class WrongOperation:
    """A wrong operation: its `distance` from float64, the CPU's in the same dtype; `excess`: distance / allowed."""

    module: str
    call: TorchCall
    distance: float
    cpu_distance: float
    excess: float

    def evidence(self) -> dict[str, Any]:
        """Its part of the origin."""
        return {
            "name": self.call.operation,
            "difference": self.distance,
            "cpu_difference": self.cpu_distance,
            "inputs": [facts(tensor, name) for name, tensor in tensors_in(self.call.named)],
        }


class PerOperation(TorchFunctionMode):
    """Watches one module, and keeps the operation that exceeds its allowed distance most."""

    def __init__(self, model: nn.Module, inside: nn.Module, leave_out: Collection[nn.Module] = ()) -> None:
        super().__init__()
        self.worst: WrongOperation | None = None
        self._path = ModulePath(model)
        self._inside = inside
        self._leave_out = leave_out

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch until the block ends."""
        with self._path.followed(), uncompiled(), self:
            yield

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inside = self._inside in self._path and not any(module in self._path for module in self._leave_out)
        # An operation that writes in place has lost its inputs.
        looked_at = inside and isinstance(result, Tensor) and result.is_floating_point()
        if looked_at and not writes_in_place(func, kwargs):
            self._judge(TorchCall(func, args, kwargs, result), result)
        return result

    def _judge(self, call: TorchCall, result: Tensor) -> None:
        plain, exact = replay(call), in_float64(call)
        if plain is None or exact is None or plain.shape != result.shape or exact.shape != result.shape:
            return
        mine = result.detach().cpu()
        if call.operation == SDPA and (dead := fully_masked_rows(call, result)) is not None:
            alive = ~dead.cpu()
            mine, plain, exact = mine[alive], plain[alive], exact[alive]
        if not exact.numel():
            return
        distance, cpu_distance = largest_error(mine, exact), largest_error(plain, exact)
        allowed = allowed_error(exact, result.dtype, [cpu_distance])
        excess = distance / allowed if allowed else math.inf
        if distance > allowed and (self.worst is None or excess > self.worst.excess):
            self.worst = WrongOperation(self._path.module, call, distance, cpu_distance, excess)
