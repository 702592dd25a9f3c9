"""Watch without changing what runs: compiled kernels, and the fused paths of torch's own transformer layers.

`nn.TransformerEncoder`, its layers and `nn.MultiheadAttention` take a fused kernel in evaluation unless a hook or a
function mode is in the way. Its fully masked rows are NaN where those of the slow path are not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from mpsdiag.tracing.watch.tensors import impurity, tensors_in, unseen

FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


Seen = Callable[[nn.Module, dict[str, Any], Any], None]


class FusedPaths:
    """Runs torch's transformer layers as they run unwatched, and in detail only where that shows the same fault."""

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
