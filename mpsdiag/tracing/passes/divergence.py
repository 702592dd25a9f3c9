"""Training that breaks its own weights: the trajectory of a run, and when the learning rate is the cause."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mpsdiag.inputs.modules import numbered_layers
from mpsdiag.tracing.causes.given_values import nonfinite_weights
from mpsdiag.tracing.origin import REMEDIES, Cause, Origin
from mpsdiag.tracing.watch.model_state import device_label
from mpsdiag.tracing.watch.tensors import LISTED, facts, impurity, largest

GROWTH = 10.0
"""Least growth factor of a loss, gradient norm or weight that counts as divergence."""
OF_TRAINING = ("overflow", "unknown", "wrong_device")
"""Causes that may really be a divergence; causes in the data or the mask are never changed."""


@dataclass
class Trajectory:
    """Loss (nats) and gradient norm of every step so far."""

    learning_rate: float
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)

    def note(self, loss: float, grad_norm: float) -> None:
        """Add a step."""
        self.losses.append(loss)
        self.grad_norms.append(grad_norm)

    @property
    def step(self) -> int:
        """Number of the last step, from 0."""
        return len(self.losses) - 1

    def evidence(self) -> dict[str, Any]:
        """Its part of an origin."""
        return {"step": self.step, **asdict(self)}


def or_divergence(model: nn.Module, origin: Origin, trajectory: Trajectory, initial: Mapping[str, Tensor]) -> Origin:
    """The origin unchanged, or as the end of a divergence if losses, gradients or weights grew at least tenfold.

    If the initial weights are given, the caller has run the control; otherwise the summary does not mention it.
    """
    grown = _growth(model, trajectory, initial)
    if max(grown.values(), default=0.0) < GROWTH:
        return origin
    listed = ", ".join(f"{name} x {factor:.3g}" for name, factor in grown.items() if factor >= GROWTH)
    control = "; the same batch is finite with the initial weights" if initial else ""
    return origin.model_copy(
        update={
            "cause": "divergence",
            "summary": f"training diverged: finite up to step {trajectory.step - 1}, not in step {trajectory.step} "
            f"({listed} since the first step){control}",
            "evidence": trajectory.evidence() | {"growth": grown, "born_as": origin.cause} | origin.evidence,
            "remedy": REMEDIES["divergence"],
        }
    )


def after_the_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, trajectory: Trajectory, initial: Mapping[str, Tensor]
) -> Origin | None:
    """The weights that an optimizer step made non-finite; None if none of them was finite before."""
    finite = {name for name, weight in initial.items() if not impurity(weight)}
    bad = [weight for weight in nonfinite_weights(model) if weight["name"] in finite]
    if not bad:
        return None
    name = bad[0]["name"]
    weight = dict(model.named_parameters()).get(name)
    state = optimizer.state.get(weight, {}) if weight is not None else {}
    kind = type(optimizer).__name__
    evidence = {
        **trajectory.evidence(),
        "weights": bad[:LISTED],
        "bad_tensors": len(bad),
        "optimizer_state": [facts(t, key) for key, t in state.items() if isinstance(t, Tensor) and t.dim()],
        "device": device_label(model),
    }
    cause: Cause = "divergence"
    rate, remedy = trajectory.learning_rate, "divergence"
    summary = f"the {kind} step made {name} non-finite from finite gradients (learning rate {rate:.3g})"
    eps, half = optimizer.defaults.get("eps"), torch.float16
    if weight is not None and weight.dtype == half and eps is not None and not torch.tensor(eps, dtype=half):
        cause, remedy = "overflow", "vanishing_eps"
        summary = (
            f"{kind} divides by zero in float16: its eps is smaller than the smallest float16, and squared gradients "
            "vanish in it"
        )
    return Origin(
        cause=cause,
        layer=_layer_of(model, name),
        module=name.rpartition(".")[0],
        operation=f"{kind}.step",
        phase="optimizer",
        summary=summary,
        evidence=evidence,
        remedy=REMEDIES[remedy],
    )


def exploded_norm(model: nn.Module, trajectory: Trajectory) -> Origin | None:
    """Finite gradients so large that their norm overflows; None if a gradient itself is non-finite."""
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    if math.isfinite(trajectory.grad_norms[-1]) or any(map(impurity, gradients.values())) or not gradients:
        return None
    name = max(gradients, key=lambda key: largest(gradients[key]))
    return Origin(
        cause="overflow",
        layer=_layer_of(model, name),
        module=name.rpartition(".")[0],
        operation="clip_grad_norm_",
        phase="backward",
        summary=f"the gradient norm overflows: the gradient of {name} reaches {largest(gradients[name]):.4g}, whose "
        "square overflows its dtype",
        evidence={"gradient": facts(gradients[name], name), "device": device_label(model)},
        remedy=REMEDIES["divergence"],
    )


def _growth(model: nn.Module, trajectory: Trajectory, initial: Mapping[str, Tensor]) -> dict[str, float]:
    """Growth of losses, gradient norms and weights: the last finite ones divided by the first."""
    grown = {}
    for name, values in (("loss", trajectory.losses), ("gradient norm", trajectory.grad_norms)):
        finite = [value for value in values if math.isfinite(value)]
        if len(finite) > 1 and finite[0] > 0:
            grown[name] = max(finite[1:]) / finite[0]
    before = max((largest(weight) for weight in initial.values()), default=0.0)
    now = max((largest(weight) for weight in model.parameters()), default=0.0)
    if before > 0:
        grown["largest weight"] = now / before
    return grown


def _layer_of(model: nn.Module, weight: str) -> int | None:
    names, layers = {module: name for name, module in model.named_modules()}, numbered_layers(model)
    return next((n for layer, n in layers.items() if weight.startswith(f"{names[layer]}.")), None)
