"""In which layers training takes the path without gradients: that of the fast MPS kernel, as in an evaluation.

torch takes the MPS operator unless grad mode is on and query, key or value requires a gradient. With a frozen base,
with adapters behind the attention only, or inside reentrant checkpointing, training takes it too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpsdiag.sdpa.watch import SdpaCall, SdpaWatch


@dataclass(frozen=True)
class GradientPath:
    """One call of attention in training: whether grad mode was on, and whether an input wanted a gradient."""

    grad_mode: bool
    wanted: bool

    @property
    def exposed(self) -> bool:
        """It takes the path of an evaluation."""
        return not (self.grad_mode and self.wanted)


class _GradientWatch(SdpaWatch):
    def __init__(self) -> None:
        super().__init__()
        self.paths: list[GradientPath] = []

    def saw_sdpa(self, call: SdpaCall, result: Tensor) -> None:
        del result
        wanted = any(tensor.requires_grad for tensor in (call.query, call.key, call.value))
        # Dropout keeps a call off the fast kernel, up to torch 2.11.
        self.paths.append(GradientPath(torch.is_grad_enabled(), wanted or call.dropout_p > 0))


def training_paths(model: nn.Module) -> list[GradientPath]:
    """Run two tokens without padding in training mode, and watch which calls of attention want gradients.

    Args:
        model: Takes `input_ids`; left as it was, random numbers too.
    """
    device = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    model.train()
    try:
        devices = [device] if device.type == "cuda" else []
        watch = _GradientWatch()
        with torch.random.fork_rng(devices=devices), torch.enable_grad(), watch:
            model(input_ids=torch.tensor([[1, 1]], device=device), use_cache=False)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return watch.paths


def training_notes(model: nn.Module) -> list[str]:
    """Sentences about training, where it is exposed as an evaluation is; none where it is not."""
    try:
        paths = training_paths(model)
    except (
        TypeError,
        ValueError,
        RuntimeError,
    ):  # Needs more than token ids, or fails for a reason the scenario shows.
        return []
    exposed = [index for index, path in enumerate(paths) if path.exposed]
    if not exposed:
        return []
    why = (
        "reentrant gradient checkpointing runs them without gradients (use_reentrant=False does not)"
        if not paths[exposed[0]].grad_mode
        else "no weight in front of them is trained (frozen base, or adapters behind the attention only)"
    )
    sentence = (
        f"Training is exposed too: {len(exposed)} of {len(paths)} attention calls, from number {exposed[0]} on, take "
        f"the path without gradients, because {why}."
    )
    return [sentence]
