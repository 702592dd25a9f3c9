"""Where a model runs, and its state: random numbers, buffers and modes, restored to run the same thing twice."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from mpsdiag.emulation import mode as emulation
from mpsdiag.inputs.nonfinite import is_statistic
from mpsdiag.tracing.origin import REMEDIES, Origin, Phase
from mpsdiag.tracing.watch.tensors import impurity, tensors_in, unseen


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
    """The positions a module sees that are not padding, (sequences, positions) bool on the CPU; None if unknown.

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


class Repeat:
    """The state of the generators and of a model's buffers, saved on creation and by `take`; `again` restores it."""

    def __init__(self, model: nn.Module) -> None:
        self._weight = next(model.parameters(), None)
        self._place = self._now()
        kind = self.device.type
        self._generator: Any = None if kind == "cpu" else getattr(torch, kind, None)  # Of the device, as `torch.mps`.
        self._owners = [
            (owner, name, is_statistic(name)) for owner in map(_buffers_of, model.modules()) for name in owner
        ]
        self._kept: list[_KeptBuffer | None] = [None] * len(self._owners)
        self.take()

    @property
    def fits(self) -> bool:
        """Whether the model is on the same device, in the same dtype."""
        return self._place == self._now()

    @property
    def device(self) -> torch.device:
        """Of the first weight."""
        return self._place[0]

    def take(self) -> Repeat:
        """Save and return the current state; buffers that have not been written into since are not copied again."""
        self._random = torch.get_rng_state()
        self._device_random = self._generator and self._generator.get_rng_state()
        self._kept = [
            _kept_buffer(owner.get(name), known, statistic=statistic)
            for (owner, name, statistic), known in zip(self._owners, self._kept, strict=True)
        ]
        taken = object.__new__(Repeat)
        vars(taken).update(vars(self))
        return taken

    def _now(self) -> tuple[torch.device, torch.dtype | None]:
        return (torch.device("cpu"), None) if self._weight is None else (self._weight.device, self._weight.dtype)

    def again(self) -> None:
        """Restore random numbers and buffers."""
        torch.set_rng_state(self._random)
        if self._device_random is not None:
            self._generator.set_rng_state(self._device_random)
        with torch.no_grad():
            for (owner, name, _), kept in zip(self._owners, self._kept, strict=True):
                if kept is None:
                    continue
                owner[name], copy, _ = kept
                if kept[0].is_inference():  # Nothing may be written into it here.
                    owner[name] = copy.clone()
                elif kept[0].shape == copy.shape:
                    kept[0].copy_(copy)


def _buffers_of(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """Where a forward may put another tensor; TorchScript, in which it may not, has only a view of it."""
    buffers = module._buffers  # noqa: SLF001 - no public name for it
    return dict(buffers.items()) if isinstance(module, torch.jit.ScriptModule) else buffers


_KeptBuffer = tuple[torch.Tensor, torch.Tensor, int]
"""A buffer, a copy of it, and how often it had been written into by then."""


def _kept_buffer(buffer: torch.Tensor | None, known: _KeptBuffer | None, *, statistic: bool) -> _KeptBuffer | None:
    if buffer is None:
        return None
    # Kernels write statistics without counting; tensors of inference mode do not count at all.
    version = -1 if statistic or buffer.is_inference() else buffer._version  # noqa: SLF001
    if known is not None and known[0] is buffer and known[2] == version != -1:
        return known
    return buffer, buffer.detach().clone(), version


def unexplained(
    model: nn.Module, summary: str, remedy: str, *, operation: str = "forward", phase: Phase = "forward", **more: Any
) -> Origin:
    """The origin of a value that no rule explains; `more` is its evidence."""
    return Origin(
        cause="unknown",
        operation=operation,
        phase=phase,
        summary=summary,
        evidence={**more, "device": device_label(model)},
        remedy=REMEDIES[remedy],
    )


def only_unwatched(model: nn.Module) -> Origin:
    """The origin of a value that is non-finite whenever the model runs as it is, but finite operation by operation."""
    what = (
        "the forward is non-finite whenever it runs as it is, but finite operation by operation: a compiled "
        "or fused kernel gives other values than the operations it replaces"
    )
    return unexplained(model, what, "compiled")


def did_not_repeat(
    model: nn.Module, what: str, *, operation: str = "forward", phase: Phase = "forward", **evidence: Any
) -> Origin:
    """The origin of a value that was non-finite, and is finite when run again."""
    summary = (
        f"{what} was not finite, but is finite when run again: something here does not repeat (uninitialized "
        "memory, a nondeterministic kernel, or state that the model keeps outside its buffers)"
    )
    return unexplained(model, summary, "not_repeatable", operation=operation, phase=phase, **evidence)


FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


Seen = Callable[[nn.Module, dict[str, Any], Any], None]


class FusedPaths:
    """Runs torch's transformer layers as they run unwatched, and in detail only if that shows the same fault."""

    def __init__(self, model: nn.Module, seen: Seen) -> None:
        self._seen = seen
        self._unwatched = False
        self._first: nn.Module | None = None
        # A hook of the user's own keeps a layer off its fused path anyway.
        self._modules = [m for m in model.modules() if isinstance(m, FUSED) and not _has_hooks(m)]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the fused paths until the block ends. An emulation that is in effect takes none, as MPS does."""
        watched = bool(_get_current_function_mode_stack())  # type: ignore[no-untyped-call]  # in torch
        modules = [] if watched or torch.is_grad_enabled() else self._modules
        modules = [module for module in modules if "forward" not in vars(module)]
        for module in modules:
            vars(module)["forward"] = self._instead_of(module, module.forward)
        try:
            yield
        finally:
            for module in modules:
                del vars(module)["forward"]

    def _instead_of(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._unwatched:
                result = forward(*args, **kwargs)
                if self._first is None and _bad(result):
                    self._first = module
                return result
            plain = self._run_unwatched(module, forward, args, kwargs)
            if not _bad(plain):
                return plain
            detailed = forward(*args, **kwargs)
            if _bad(detailed):
                return detailed
            named = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
            self._seen(self._first or module, {k: v for k, v in named.items() if k != "self"}, plain)
            return plain

        return run

    def _run_unwatched(
        self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self._unwatched, self._first = True, None
        try:
            with _without_hooks(module), unseen():
                return forward(*args, **kwargs)
        finally:
            self._unwatched = False


def _has_hooks(module: nn.Module) -> bool:
    return any(inner._forward_hooks or inner._forward_pre_hooks for inner in module.modules())  # noqa: SLF001 - no public list


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """Set aside the hooks that follow a forward, all of them ours."""
    kept = [(inner, name, vars(inner)[name]) for inner in module.modules() for name in _HOOKS]
    for inner, name, hooks in kept:
        vars(inner)[name] = type(hooks)()
    try:
        yield
    finally:
        for inner, name, hooks in kept:
            vars(inner)[name] = hooks


_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def _bad(result: Any) -> bool:
    return any(
        bool(impurity(part))
        for _, tensor in tensors_in(result)
        for part in (tensor.unbind() if tensor.is_nested else [tensor])
        if isinstance(part, Tensor)
    )
