"""One outermost call of a module: where the user's code made it, and what it takes to make it once more."""

from __future__ import annotations

import copy
import functools
import inspect
import sys
import sysconfig
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch
from torch import Tensor, nn

from mpsdiag.tracing.watch.model_state import Repeat, device_of, in_mode
from mpsdiag.tracing.watch.tensors import copied, fresh, tensors_in

_LIBRARIES: Final = tuple(
    {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    | {str(Path(__file__).resolve().parents[2])}
)
_REPEATS: Final[weakref.WeakKeyDictionary[nn.Module, Repeat]] = weakref.WeakKeyDictionary()
LARGEST_GRADIENT = 2**24
"""Gradients of outputs with more values are not kept, so a backward through them is not repeated."""


@functools.lru_cache(maxsize=4096)
def is_user_code(file: str) -> bool:
    """Whether a file is neither Python's, nor an installed library, nor ours; cells of notebooks are the user's."""
    if file.startswith("<"):
        return file.startswith(("<ipython", "<stdin", "<string"))
    path = str(Path(file).absolute())
    return not path.startswith(_LIBRARIES) and "site-packages" not in path and "dist-packages" not in path


@dataclass(frozen=True)
class Line:
    """A line of the user's code, as its frame had it; `hides`: transformers' Trainer filters the loss made here."""

    file: str = ""
    number: int = 0
    way: tuple[str, ...] = ()
    hides: bool = False


def calling_line() -> Line:
    """The innermost line of the user's code on the stack; `way`: all lines of it, the outermost first."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 - inspect.stack reads files
    found: list[tuple[str, int]] = []
    hides = False
    while frame is not None:
        code = frame.f_code
        if code.co_name in ("training_step", "prediction_step") and "self" in code.co_varnames:
            arguments = getattr(frame.f_locals.get("self"), "args", None)
            hides = hides or bool(getattr(arguments, "logging_nan_inf_filter", False))
        if is_user_code(code.co_filename):
            found.append((code.co_filename, frame.f_lineno))
        frame = frame.f_back
    if not found:
        return Line(hides=hides)
    return Line(*found[0], tuple(f"{file}:{line}" for file, line in reversed(found)), hides)


@dataclass(eq=False)
class WatchedForward:
    """An outermost call, kept by reference until its flags have been read.

    `flag`: a device scalar that is not finite if an output is not; `gradients`: those of the outputs, once known.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    line: Line
    step: int
    training: bool
    grad: bool
    inference: bool
    autocast: tuple[str, torch.dtype] | None
    repeat: Repeat
    versions: list[int]
    flag: Tensor | None = None
    loss: Tensor | None = None
    gradients: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], step: int) -> WatchedForward:
        """Take down a call that is about to be made."""
        repeat = _REPEATS.get(model)
        if repeat is None or not repeat.fits(model):
            repeat = _REPEATS[model] = Repeat(model)
        else:
            repeat.take()
        kind = device_of(model).type
        casts = torch.is_autocast_enabled(kind)
        return cls(
            model=model,
            args=tuple(map(_kept, args)),
            kwargs={name: _kept(value) for name, value in kwargs.items()},
            line=calling_line(),
            step=step,
            training=model.training,
            grad=torch.is_grad_enabled(),
            inference=torch.is_inference_mode_enabled(),
            autocast=(kind, torch.get_autocast_dtype(kind)) if casts else None,
            repeat=copy.copy(repeat),
            versions=_versions((args, kwargs)),
        )

    @property
    def unchanged(self) -> bool:
        """Whether nobody has written into the inputs since."""
        return self.versions == _versions((self.args, self.kwargs))

    def keep_gradients(self, outputs: Iterator[tuple[str, Tensor]]) -> None:
        """Keep the gradients that will reach the outputs, by their number."""
        for number, (_, tensor) in enumerate(outputs):
            if tensor.requires_grad and tensor.numel() <= LARGEST_GRADIENT:
                hooked: Any = tensor
                hooked.register_hook(functools.partial(self.gradients.__setitem__, number))

    @contextmanager
    def again(self) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
        """The model and its arguments by name, under the modes of the call; gradients and modes are put back."""
        model: nn.Module = self.model
        while isinstance(inner := getattr(model, "_orig_mod", None), nn.Module) or (
            _takes_anything(model) and isinstance(inner := getattr(model, "module", None), nn.Module)
        ):
            model = inner
        kept, now = [(weight, weight.grad) for weight in model.parameters()], Repeat(model)
        with ExitStack() as stack:
            if model.training != self.training:
                stack.enter_context(in_mode(model, training=self.training, grad=self.grad))
            stack.enter_context(torch.set_grad_enabled(self.grad))
            if self.inference:
                stack.enter_context(torch.inference_mode())
            if self.autocast is not None:
                stack.enter_context(torch.autocast(self.autocast[0], dtype=self.autocast[1]))
            batch = stack.enter_context(_by_name(model, self.args, self.kwargs))
            try:
                yield model, fresh(batch)
            finally:
                now.again()
                for weight, gradient in kept:
                    weight.grad = gradient


def _kept(value: Any) -> Any:
    """A value as it is now: a cache that the call appends to is copied, its tensors are not."""
    return copied(value, lambda tensor: tensor) if "Cache" in type(value).__name__ else value


def _versions(value: Any) -> list[int]:
    """How often each tensor in a value was written into."""
    return [tensor._version for _, tensor in tensors_in(value) if not tensor.is_inference()]  # noqa: SLF001


def _takes_anything(model: nn.Module) -> bool:
    parameters = inspect.signature(model.forward).parameters.values()
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)


@contextmanager
def _by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments of a call by name; positional ones without a name are called `input 0`, `input 1`, ..."""
    if not _takes_anything(model):
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
        named = dict(bound.arguments)
        for parameter in bound.signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                named |= named.pop(parameter.name, {})
        yield named
        return
    forward, own = model.forward, vars(model).get("forward")
    names = [f"input {number}" for number in range(len(args))]

    def call(**named: Any) -> Any:
        return forward(*[named.pop(name) for name in names], **named)

    vars(model)["forward"] = call
    try:
        yield dict(zip(names, args, strict=True)) | kwargs
    finally:
        del vars(model)["forward"]
        if own is not None:
            vars(model)["forward"] = own
