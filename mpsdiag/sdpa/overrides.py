"""Arguments that answer a call themselves, by torch's `__torch_function__` protocol, where a function was replaced.

A class knows a function of torch by one of two names: the function itself, which torch passes and which tables made
earlier hold, or whatever the public name holds at the moment of the call. In stock torch both are the same object.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _get_overloaded_args, handle_torch_function, has_torch_function

Function = Callable[..., Any]


def overriding(args: tuple[Any, ...], options: Mapping[str, Any]) -> bool:
    """Whether an argument of a call answers for itself. Modes that are active do not count."""
    values = (*args, *options.values())
    return has_torch_function(values) and (torch.compiler.is_compiling() or bool(_owners(values)))


def answer(original: Function, replacement: Function, args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """Let the arguments of a call answer it, as they do where the function was not replaced.

    The classes are asked by both names. Where none knows either, `replacement` gets the call back with the protocol
    switched off: so a subclass without opinions keeps its type. An `original` that is not torch's own gets the call as
    it came.
    """
    if not isinstance(original, types.BuiltinFunctionType):
        return original(*args, **options)
    values = (*args, *options.values())
    compiling = torch.compiler.is_compiling()  # a mode cannot be entered there, so one name has to do
    if compiling and torch.nn.functional.scaled_dot_product_attention is original:
        return original(*args, **options)
    if compiling or torch._C._is_torch_function_mode_enabled():  # noqa: SLF001 - modes come first; no public name
        return handle_torch_function(replacement, values, *args, **options)
    owners = _owners(values)
    kinds = tuple(map(type, owners))
    try:
        with _Unanswered(original, kinds):
            result = _ask(owners, original, kinds, args, options)
    except (_UnansweredError, NotImplementedError):  # torch's own biases raise up to 2.7
        result = NotImplemented
    if result is NotImplemented:
        result = _ask(owners, replacement, kinds, args, options)
    # Where all refuse, torch raises its own error.
    return original(*args, **options) if result is NotImplemented else result


def _owners(values: tuple[Any, ...]) -> list[Any]:
    # A plain tensor has the method too, inherited by all.
    return _get_overloaded_args([x for x in values if type(x) is not torch.Tensor])


def _ask(
    owners: list[Any], name: Function, kinds: tuple[type, ...], args: tuple[Any, ...], options: Mapping[str, Any]
) -> Any:
    answers = (owner.__torch_function__(name, kinds, args, dict(options)) for owner in owners)
    return next((result for result in answers if result is not NotImplemented), NotImplemented)


class _UnansweredError(BaseException):
    """Leaves the `__torch_function__` of a class that does not know the function; none catch it by `Exception`."""


class _Unanswered(TorchFunctionMode):
    """Notices that a class passed a call on to the function itself, with its own kind among the arguments."""

    def __init__(self, function: Function, kinds: tuple[type, ...]) -> None:
        super().__init__()
        self._function = function
        self._kinds = kinds

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        options = kwargs or {}
        if func is self._function and any(type(x) in self._kinds for x in (*args, *options.values())):
            raise _UnansweredError
        return func(*args, **options)
