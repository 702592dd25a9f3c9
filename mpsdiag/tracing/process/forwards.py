"""One outermost call of a module: where the user's code made it, and what is needed to repeat it."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import sysconfig
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import unserializable_hook

from mpsdiag.inputs.modules import in_mode, mapped
from mpsdiag.tracing.watch.model_state import Repeat
from mpsdiag.tracing.watch.tensors import copied, fresh, tensors_in, unseen
from mpsdiag.tracing.watch.tracer import flag_of, is_up

_LIBRARIES: Final = tuple(
    folder + os.sep
    for folder in {
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        # Commands such as torchrun and pytest, but not the user's scripts in a folder such as /usr/local/bin.
        *([sysconfig.get_path("scripts")] if sys.prefix != sys.base_prefix else []),
        str(Path(__file__).resolve().parents[2]),
    }
)
LARGEST_GRADIENT = 2**24
"""Gradients of larger outputs are not kept, so a backward through them is not repeated."""


@functools.lru_cache(maxsize=4096)
def is_user_code(file: str) -> bool:
    """Whether a file belongs neither to Python, nor to an installed library, nor to mpsdiag; notebook cells do not."""
    if file.startswith("<"):
        return file.startswith(("<ipython", "<stdin"))
    path = str(Path(file).absolute())
    return not path.startswith(_LIBRARIES) and "site-packages" not in path and "dist-packages" not in path


@dataclass(frozen=True)
class Line:
    """The lines of the user's code that led to a call, the outermost first, as (file, number).

    `hides`: transformers' Trainer filters the loss made here.
    """

    way: tuple[tuple[str, int], ...] = ()
    hides: bool = False


def calling_line() -> Line:
    """The lines of the user's code on the stack."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - inspect.stack reads files
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
    return Line(tuple(reversed(found)), hides)


class _Known:
    """What earlier calls showed about a model: its state, and which inputs are written into (None: no call yet)."""

    def __init__(self, model: nn.Module) -> None:
        self.repeat = Repeat(model)
        self.written: set[str] | None = None


_KNOWN: Final[weakref.WeakKeyDictionary[nn.Module, _Known]] = weakref.WeakKeyDictionary()


class _Input(NamedTuple):
    """An input tensor of a call, how often it had been written into, and a copy if more writes are expected."""

    tensor: Tensor
    version: int
    copy: Tensor | None

    @property
    def changed(self) -> bool:
        """Whether it has been written into since."""
        return self.tensor._version != self.version  # noqa: SLF001 - no public name for it


@dataclass(eq=False)
class WatchedForward:
    """An outermost call, kept by reference until its flags have been read.

    `flag`: a device scalar that is not finite if an output is not, except `loss`, which is its own flag; `bad`: what
    they said, None before they were read; `gradients`: those of the outputs, once known.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    step: int
    grad: bool
    known: _Known
    repeat: Repeat
    inputs: dict[str, _Input]
    line: Line = Line()
    training: bool = False
    inference: bool = False
    autocast: tuple[str, torch.dtype] | None = None
    flag: Tensor | None = None
    bad: bool | None = None
    loss: Tensor | None = None
    gradients: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], step: int) -> WatchedForward:
        """Record a call that is about to be made."""
        known = _KNOWN.get(model)
        if known is None or not known.repeat.fits:
            known = _KNOWN[model] = _Known(model)
        return cls(
            model=model,
            args=tuple(map(_kept, args)),
            kwargs={name: _kept(value) for name, value in kwargs.items()},
            step=step,
            grad=torch.is_grad_enabled(),
            known=known,
            repeat=known.repeat.take(),
            inputs=_inputs(args, kwargs, known.written),
        )

    def keep(self) -> None:
        """Record the line and the modes of the call, while they still hold: a call that was good at once needs none."""
        kind = self.known.repeat.device.type
        casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        self.autocast = (kind, torch.get_autocast_dtype(kind)) if casts else None
        self.line, self.training = calling_line(), self.model.training
        self.inference = torch.is_inference_mode_enabled()

    def learn(self) -> None:
        """Remember which inputs were written into: they are copied before every later call."""
        changed = {name for name, one in self.inputs.items() if one.changed}
        if changed or self.known.written is None:
            self.known.written = changed | (self.known.written or set())

    def let_go(self) -> WatchedForward:
        """A copy that holds neither the model nor anything of it."""
        kept = object.__new__(WatchedForward)
        vars(kept).update({k: v for k, v in vars(self).items() if k not in ("model", "known", "repeat", "gradients")})
        return kept

    @property
    def lost(self) -> list[str]:
        """Inputs that have changed and of which there is no copy."""
        return [name for name, one in self.inputs.items() if one.changed and one.copy is None]

    def keep_gradients(self, outputs: Iterator[tuple[str, Tensor]]) -> None:
        """Keep the gradients that will reach the outputs, by their number."""
        for number, (_, tensor) in enumerate(outputs):
            if tensor.grad_fn is not None and tensor.numel() <= LARGEST_GRADIENT:  # A weight would keep every hook.
                hooked: Any = tensor
                hook = functools.partial(self.gradients.__setitem__, number)
                hooked.register_hook(unserializable_hook(hook))  # type: ignore[no-untyped-call]  # in torch

    @contextmanager
    def again(self) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
        """The model and its arguments by name, under the modes of the call; gradients and modes are restored."""
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
            batch = stack.enter_context(_by_name(model, *self._given()))
            try:
                yield model, fresh(batch)
            finally:
                now.again()
                for weight, gradient in kept:
                    weight.grad = gradient

    def comes_out_bad(self) -> bool:
        """Whether the call, repeated in the current modes, gives non-finite values again."""
        self.repeat.again()
        args, kwargs = self._given()
        given = fresh({"args": args, "kwargs": kwargs})
        flag = flag_of(self.model(*given["args"], **given["kwargs"]))
        return flag is not None and is_up(float(flag))

    def _given(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as they were when the call was made."""
        before = {id(one.tensor): one.copy for one in self.inputs.values() if one.changed and one.copy is not None}
        if not before:
            return self.args, self.kwargs
        args, kwargs = mapped((self.args, self.kwargs), lambda value: before.get(id(value), value))
        return args, kwargs


def holds_values() -> bool:
    """Whether tensors have values, because nothing is being traced, exported or transformed."""
    tracing = torch._C._get_tracing_state() is not None  # noqa: SLF001 - what torch.jit.is_tracing asks
    transformed = torch._C._are_functorch_transforms_active()  # noqa: SLF001 - no public name for it
    fake = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)  # noqa: SLF001 - nor for this
    return not tracing and not transformed and fake is None


def _kept(value: Any) -> Any:
    """A value as it is now: a cache that the call appends to is copied, its tensors are not."""
    return copied(value, lambda tensor: tensor) if "Cache" in type(value).__name__ else value


def _inputs(args: tuple[Any, ...], kwargs: dict[str, Any], written: set[str] | None) -> dict[str, _Input]:
    """The tensors of a call, with copies of those that are written into, or of all at the first call."""
    found = {}
    with unseen():
        for name, tensor in chain(tensors_in(args), tensors_in(kwargs)):
            if tensor.is_inference():  # They do not count.
                continue
            wanted = not tensor.is_meta and (written is None or name in written)
            copy = tensor.detach().clone().requires_grad_(tensor.requires_grad) if wanted else None
            found[name] = _Input(tensor, tensor._version, copy)  # noqa: SLF001 - no public name for it
    return found


def _takes_anything(model: nn.Module) -> bool:
    parameters = inspect.signature(model.forward).parameters.values()
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)


@contextmanager
def _by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments of a call by name; unnamed positional ones are called `input 0`, `input 1`, ..."""
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
