"""The modules of a model while it runs: its decoder layers, what they hand on, and which of them a forward is in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mpsdiag.inputs.outputs import logits_of


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a transformer: the longest ModuleList of modules of one class."""
    stacks = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    uniform = [stack for stack in stacks if len({type(layer) for layer in stack}) == 1]
    return max(uniform, key=len, default=[])


def first_tensor(output: Any) -> Tensor | None:
    """The hidden state of a module's output: the tensor itself, the first of a tuple, or the logits.

    In a mapping without logits it is the first tensor that is no loss.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    logits = logits_of(output)
    if logits is not None or not isinstance(output, Mapping):
        return logits
    others = (value for name, value in output.items() if name != "loss" and isinstance(value, Tensor))
    return next(others, None)


class ModulePath:
    """The modules that a forward is in, the outermost first; empty outside of the model, and unless `followed`."""

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
        self._layers = {layer: index for index, layer in enumerate(decoder_layers(model))}
        self._path: list[nn.Module] = []

    def __bool__(self) -> bool:
        return bool(self._path)

    def __contains__(self, module: nn.Module) -> bool:
        return module in self._path

    @property
    def module(self) -> str:
        """Dotted path of the innermost module."""
        return self._names[self._path[-1]]

    @property
    def layer(self) -> int | None:
        """The decoder layer it is in; None outside of the layers."""
        return next((self._layers[m] for m in reversed(self._path) if m in self._layers), None)

    def layer_of(self, module: nn.Module) -> int | None:
        """The number of a module that is a decoder layer; None for any other."""
        return self._layers.get(module)

    @contextmanager
    def followed(self, leaving: Callable[[nn.Module, Any], None] | None = None) -> Iterator[None]:
        """Follow the forwards of the model until the block ends; the hooks are removed whatever happens.

        Args:
            leaving: Called with a module and its output, while it is still the innermost; the output is None where
                the forward raised.
        """

        # A copy that is made of the model meanwhile takes the hooks along; its modules are none of ours.
        def enter(module: nn.Module, _: Any) -> None:
            if module in self._names:
                self._path.append(module)

        def leave(module: nn.Module, _: Any, output: Any) -> None:
            if module not in self._names:
                return
            if leaving is not None:
                leaving(module, output)
            self._path.pop()

        handles = []
        for module in self._names:
            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._path.clear()
