"""A model while it runs: its layers, the layer a forward is in, its outputs; and its copy on the CPU."""

import copy
import math
import sys
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn


def numbered_layers(model: nn.Module) -> dict[nn.Module, int]:
    """The repeated blocks of a transformer, in order, each with its number in its own stack.

    A stack is a ModuleList of modules of one class that is not inside another one; an encoder-decoder has two. Lists
    of plain layers, such as several heads, count only if there is nothing longer.
    """
    stacks: list[list[nn.Module]] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if not isinstance(module, nn.ModuleList) or module in inside or not len(module):
            continue
        # A compiled layer stands for the layer in it.
        if len({type(getattr(layer, "_orig_mod", layer)) for layer in module}) == 1:
            stacks.append(list(module))
            inside |= set(module.modules())
    longest = max(stacks, key=len, default=[])
    blocks = [stack for stack in stacks if stack is longest or any(True for _ in stack[0].children())]
    return {layer: number for stack in blocks for number, layer in enumerate(stack)}


def first_tensor(output: Any) -> Tensor | None:
    """The hidden state of a module's output: the tensor itself, the first of a tuple, or the logits.

    In a mapping without logits it is the first tensor that is not a loss.
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
    """The modules that a forward is in, the outermost first; empty outside the model, and unless `followed`."""

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[nn.Module, str] = {
            module: ".".join(part for part in name.split(".") if part != "_orig_mod")  # of torch.compile
            for name, module in model.named_modules()
        }
        self._layers = numbered_layers(model)
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
        """The number of the layer it is in; None outside the layers."""
        return next((self._layers[m] for m in reversed(self._path) if m in self._layers), None)

    def name_of(self, module: nn.Module) -> str:
        """Dotted path of a module."""
        return self._names[module]

    def layer_around(self, module: nn.Module) -> int | None:
        """The number of the innermost layer that contains a module or is the module; None outside the layers."""
        name = f"{self._names[module]}."
        return next((n for m, n in reversed(self._layers.items()) if name.startswith(f"{self._names[m]}.")), None)

    def layer_of(self, module: nn.Module) -> int | None:
        """The number of a module that is a layer; None for any other."""
        return self._layers.get(module)

    @contextmanager
    def followed(self, leaving: Callable[[nn.Module, Any], None] | None = None) -> Iterator[None]:
        """Follow the forwards of the model until the block ends; the hooks are always removed.

        `leaving` is called with a module and its output, while it is still the innermost; the output is None where the
        forward raised.
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


def is_compiled(module: nn.Module) -> bool:
    """Whether the module, or one in it, was given to torch.compile; a hook would be compiled along with it."""
    return any(
        hasattr(inner, "_orig_mod")
        or getattr(inner, "_compiled_call_impl", None) is not None
        or hasattr(vars(inner).get("forward"), "_torchdynamo_orig_callable")
        for inner in module.modules()
    )


def uncompiled() -> Any:
    """Run compiled code operation by operation; nothing to do if nothing can have been compiled."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    if hasattr(torch.compiler, "set_stance"):  # torch 2.6 and later
        return torch.compiler.set_stance("force_eager")
    older: Any = sys.modules["torch._dynamo.eval_frame"]
    # Code that is first called while its compiler is disabled by a setting is never compiled again.
    return patch.object(older, "_maybe_set_eval_frame", lambda _: None)


@contextmanager
def in_mode(model: nn.Module, *, training: bool, grad: bool) -> Iterator[None]:
    """Set training or evaluation mode and the grad mode, and restore both."""
    modes = {module: module.training for module in model.modules()}
    model.train(mode=training)
    try:
        with torch.set_grad_enabled(grad):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def loss_of(output: Any) -> Tensor | None:
    """The loss, found as transformers' Trainer finds it: by name, or first in a tuple. None if there is none.

    The first of a tuple is a loss if it is one number: without labels it is the logits.
    """
    if isinstance(output, tuple | list):
        first = output[0] if output else None
        return first if isinstance(first, Tensor) and first.numel() == 1 else None
    loss = _named(output, "loss")
    return loss if isinstance(loss, Tensor) else None


def logits_of(output: Any) -> Tensor | None:
    """The logits: by name, the first of a tuple after the loss, or the output itself; None if there are none."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list):
        rest = output[1:] if loss_of(output) is not None else output[:1]
        return next((item for item in rest if isinstance(item, Tensor)), None)
    logits = _named(output, "logits")
    return logits if isinstance(logits, Tensor) else None


def embeddings_of(output: Any) -> Tensor | None:
    """The embeddings of a model without a head: pooled ones or hidden states; None if it has neither."""
    found = (_named(output, name) for name in ("sentence_embedding", "token_embeddings", "last_hidden_state"))
    return next((value for value in found if isinstance(value, Tensor)), None)


def _named(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def mean(losses: Sequence[float], sizes: Sequence[int]) -> float:
    """The mean of batch losses over sequences, as the Trainer takes it."""
    return sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)


def filtered_mean(losses: Sequence[float], sizes: Sequence[int]) -> float:
    """The eval_loss of a transformers that filters evaluation: non-finite losses are left out unless all are."""
    kept = [(loss, size) for loss, size in zip(losses, sizes, strict=True) if math.isfinite(loss)]
    if not kept:
        return mean(losses, sizes)
    return mean([loss for loss, _ in kept], [size for _, size in kept])


_WATCHER = "_mpsdiag_watcher"


def copy_to_cpu(model: nn.Module) -> nn.Module:
    """Copy a model to the CPU, in evaluation mode, without gradients.

    Tensors that are already on the CPU are shared, not copied, so the original's weights must not change in place
    while the copy is in use. `copy.deepcopy` alone would first double the model on the device.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers, vars(module)):  # noqa: SLF001 - nn.Module keeps tensors there
            for value in store.values():
                if isinstance(value, Tensor) and id(value) not in memo:
                    memo[id(value)] = _cpu_twin(value)
    twin = copy.deepcopy(model, memo)
    _drop_watchers(twin)
    return twin.eval()


def to_float64(model: nn.Module) -> nn.Module:
    """Turn a copy into float64, its experts computed one by one: the grouped product has no float64."""
    switch: Any = getattr(model, "set_experts_implementation", None)
    if switch is not None:
        switch("eager")
    return model.double()


def _cpu_twin(value: Tensor) -> Tensor:
    moved = value.detach().to("cpu")
    if isinstance(value, torch.nn.Parameter):
        return torch.nn.Parameter(moved, requires_grad=False)
    return moved


def mark_watcher(hook: Any) -> Any:
    """Mark a hook that only counts, so that a CPU copy of the model does not get it."""
    setattr(hook, _WATCHER, True)
    return hook


def _drop_watchers(model: nn.Module) -> None:
    for module in model.modules():
        hooks = module._forward_hooks  # noqa: SLF001 - there is no public list of hooks
        for key in [key for key, hook in hooks.items() if getattr(hook, _WATCHER, False)]:
            hooks.pop(key)
            module._forward_hooks_with_kwargs.pop(key, None)  # noqa: SLF001 - likewise


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same nesting of tuples, lists and mappings, rebuilt, with a function applied to everything else."""
    kind: Any = type(value)
    if isinstance(value, tuple | list):
        items = [mapped(item, change) for item in value]
        # A named tuple takes its items one by one; torch's own result types take them together, like tuples.
        return kind(*items) if hasattr(value, "_fields") else kind(items)
    if isinstance(value, Mapping):
        found = {key: mapped(item, change) for key, item in value.items()}
        if hasattr(value, "to_tuple"):  # transformers' outputs are dicts that take their items as arguments.
            return kind(**found)
        return kind(found) if isinstance(value, OrderedDict | UserDict) else found  # As what a tokenizer gives.
    return change(value)


def over_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`mapped`, but with the function applied only to tensors."""
    return mapped(value, lambda item: change(item) if isinstance(item, Tensor) else item)


def move(value: Any, device: torch.device | str) -> Any:
    """Move every tensor in a nested value to a device."""
    return over_tensors(value, lambda tensor: tensor.to(device))


def to_cpu(value: Any) -> Any:
    """Move every tensor in a nested value to the CPU."""
    return move(value, "cpu")
