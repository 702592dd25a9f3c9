"""Where a model runs, and its state: random numbers, buffers and modes, put back to run the same thing twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mpsdiag import emulation
from mpsdiag.findings import Advice
from mpsdiag.inputs.nonfinite import is_statistic
from mpsdiag.tracing.origin import Origin, Phase


def device_of(model: nn.Module) -> torch.device:
    """The device of the first weight; the CPU for a module without weights."""
    weight = next(model.parameters(), None)
    return torch.device("cpu") if weight is None else weight.device


def device_label(model: nn.Module) -> str:
    """Such as `mps:0`, or `emulated MPS of torch 2.8 on macOS 15`."""
    active, device = emulation.active(), device_of(model)
    return active.describe() if active is not None and device.type == "cpu" else str(device)


def is_plain_cpu(model: nn.Module) -> bool:
    """Whether it runs on the CPU with no emulation in effect."""
    device = device_of(model)
    return device.type == "cpu" and not emulation.in_effect(device)


def real_positions(model: nn.Module, module: str, batch: Mapping[str, Any]) -> torch.Tensor | None:
    """Which positions a module sees that are not padding, (sequences, positions) bool on the CPU; None if unknown.

    A decoder has its own mask, or none; the `attention_mask` of an encoder-decoder is that of its encoder.
    """
    mask = batch.get("attention_mask")
    if is_decoder_of_two(model, module):
        mask = batch.get("decoder_attention_mask")
    return mask.bool().cpu() if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None


def is_decoder_of_two(model: nn.Module, module: str) -> bool:
    """Whether a module belongs to the decoder of an encoder-decoder."""
    both = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    return both and "decoder" in module.split(".")


def _place_of(model: nn.Module) -> tuple[torch.device, torch.dtype] | None:
    weight = next(model.parameters(), None)
    return None if weight is None else (weight.device, weight.dtype)


class Repeat:
    """The state of the generators and of a model's buffers, taken when made and by `take`; `again` puts it back."""

    def __init__(self, model: nn.Module) -> None:
        self._kind = device_of(model).type
        self._place = _place_of(model)
        named = list(model.named_buffers())
        self._buffers = [buffer for _, buffer in named]
        self._statistics = [is_statistic(name) for name, _ in named]
        self._kept: list[tuple[torch.Tensor, int] | None] = [None] * len(named)
        self.take()

    def fits(self, model: nn.Module) -> bool:
        """Whether the model is where it was, in the same dtype, and so has the same buffers."""
        return self._place == _place_of(model)

    def take(self) -> None:
        """Take the state as it is now; a buffer that nobody wrote into since is not copied again."""
        self._random = torch.get_rng_state()
        self._device_random = None if self._kind == "cpu" else getattr(torch, self._kind).get_rng_state()
        found = zip(self._buffers, self._statistics, self._kept, strict=True)
        self._kept = [self._copy(buffer, known, statistic=statistic) for buffer, statistic, known in found]

    @staticmethod
    def _copy(
        buffer: torch.Tensor, known: tuple[torch.Tensor, int] | None, *, statistic: bool
    ) -> tuple[torch.Tensor, int]:
        # Kernels write statistics without counting; tensors of inference mode do not count at all.
        version = -1 if statistic or buffer.is_inference() else buffer._version  # noqa: SLF001
        if known is not None and known[1] == version != -1:
            return known
        return buffer.detach().clone(), version

    def again(self) -> None:
        """Put random numbers and buffers back."""
        torch.set_rng_state(self._random)
        if self._device_random is not None:
            getattr(torch, self._kind).set_rng_state(self._device_random)
        with torch.no_grad():
            for buffer, kept in zip(self._buffers, self._kept, strict=True):
                if kept is not None and buffer.shape == kept[0].shape:
                    buffer.copy_(kept[0])


@contextmanager
def in_mode(model: nn.Module, *, training: bool, grad: bool) -> Iterator[None]:
    """Set training or evaluation mode and the grad mode, and put both back."""
    modes = {module: module.training for module in model.modules()}
    model.train(mode=training)
    try:
        with torch.set_grad_enabled(grad):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def only_unwatched(model: nn.Module) -> Origin:
    """The origin of what is not finite each time the model runs as it is, and finite operation by operation."""
    return Origin(
        cause="unknown",
        operation="forward",
        summary="the forward is not finite each time it runs as it is, and finite operation by operation: a compiled "
        "or fused kernel gives other values than the operations it stands for",
        evidence={"device": device_label(model)},
        remedy=Advice(
            text="Compile with another backend, layer by layer, to find the kernel, or leave torch.compile out.",
            commands=['torch.compile(model, backend="eager")', 'torch.compile(model, backend="aot_eager")'],
        ),
    )


def did_not_repeat(model: nn.Module, what: str, *, operation: str, phase: Phase = "forward", **evidence: Any) -> Origin:
    """The origin of what was not finite, and is finite when it is run again."""
    return Origin(
        cause="unknown",
        operation=operation,
        phase=phase,
        summary=f"{what} was not finite, and is finite when it is run again: something here does not repeat "
        "(uninitialized memory, or a kernel that is not deterministic)",
        evidence={**evidence, "device": device_label(model)},
        remedy=Advice(
            text="Run it several times, and on the CPU; a device that gives other values each time has a defect.",
            commands=["mpsdiag check --level 3", "mpsdiag trace ... --device cpu"],
        ),
    )
