"""One model: set its attention mode, read back whether that took, and put back what was there."""

from __future__ import annotations

import inspect
import logging
import re
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from mpsdiag.errors import BadInput
from mpsdiag.fixes import attention
from mpsdiag.fixes.catalogue import Mode, mode_named
from mpsdiag.fixes.handle import Handle

# Modeling code that asks for the exact name treats every other name as something else than SDPA.
_ASKS_FOR_SDPA = re.compile(r"_attn_implementation\s*(?:==|!=|(?:not\s+)?in\b)[^\n]*[\"']sdpa[\"']")


@dataclass
class _Applied:
    """A mode on a model: the configs it changed, each with the name it had before."""

    name: str
    before: list[tuple[Any, str | None]]


_APPLIED: weakref.WeakKeyDictionary[nn.Module, list[_Applied]] = weakref.WeakKeyDictionary()


def apply(model: nn.Module, name: str) -> Handle:
    """Put an attention mode in place for one model, and its sub-models.

    The change is in memory only: a saved and loaded model is back at its default.

    Args:
        model: A transformers model, or a module that contains some, such as one wrapped by peft.
        name: One of `MODES`.

    Returns:
        The handle that puts back what was there; also a context manager.

    Raises:
        BadInput: No such mode; it cannot run here; no transformers model in `model`; or its class does not
            let its attention be switched, and then the sentence names the way that works.
    """
    mode = mode_named(name)
    roots = list(_transformers_models(model))
    if not roots:
        raise BadInput(
            f"No transformers model in {type(model).__name__}: its attention has no switch. "
            f"For the whole process: {_install_hint(mode)}."
        )
    _require_available(mode, model)
    handles: list[Handle] = []

    def remove() -> None:
        for handle in reversed(handles):
            handle.remove()

    try:
        for root in roots:
            handles.append(_apply(root, mode))  # noqa: PERF401 - what was done is undone if the next fails
    except BaseException:
        remove()
        raise
    return Handle(name, remove)


def attention_of(model: nn.Module) -> dict[str, str | None]:
    """Read which attention is set: by model class, for a model and the sub-models that have their own config.

    Args:
        model: A module with transformers models in it.

    Returns:
        Such as `{"LlamaForCausalLM": "safe_sdpa"}`; sub-models that share a config are named once.
    """
    found: dict[str, str | None] = {}
    for root in _transformers_models(model):
        for owner, config in _configs(root):
            found[owner] = _read(config)
    return found


def _apply(model: Any, mode: Mode) -> Handle:
    repair = mode.repair()
    if repair is not None:
        attention.register(mode.name, repair)
    configs = list(_configs(model))
    before = [(config, _read(config)) for _, config in configs]
    try:
        with _quiet():
            _set(model, mode.name)
    except (ValueError, ImportError, KeyError) as refusal:
        _restore(before, mode.name)
        raise BadInput(f"{type(model).__name__} refuses attention mode '{mode.name}': {refusal}") from refusal
    kept = {owner: _read(config) for owner, config in configs if _read(config) != mode.name}
    if kept:
        _restore(before, mode.name)
        raise BadInput(_refusal(model, mode, kept))
    trap = _asking_for_exact_name(model) if repair is not None else None
    if trap is not None:
        _restore(before, mode.name)
        raise BadInput(
            f"The code of {type(model).__name__} ({trap}) asks for attention named exactly 'sdpa' and would not "
            f"take '{mode.name}' for it. Install it process-wide, where the name stays: {_install_hint(mode)}."
        )
    entry = _Applied(mode.name, before)
    stack = _APPLIED.setdefault(model, [])
    stack.append(entry)
    held = weakref.ref(model)

    def remove() -> None:
        alive = held()
        if alive is not None:
            _remove(_APPLIED[alive], entry)

    return Handle(mode.name, remove)


def _remove(stack: list[_Applied], entry: _Applied) -> None:
    """Take one entry out of a stack: the last restores the configs, an inner one hands down what it found."""
    position = next(i for i, other in enumerate(stack) if other is entry)
    del stack[position]
    if position == len(stack):
        _restore(entry.before, entry.name)
    else:
        stack[position].before = entry.before


def _set(model: Any, name: str) -> None:
    """Ask transformers to switch; before 4.56 it has no method, and reads the configs at each forward."""
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation(name)
        return
    for owner in model.modules():
        config = getattr(owner, "config", None)
        if config is not None and "ALL_ATTENTION_FUNCTIONS" in _source(type(owner)):
            config._attn_implementation_internal = name  # noqa: SLF001 - as later versions of transformers do it


def _restore(before: list[tuple[Any, str | None]], name: str) -> None:
    """Put the names back, except where somebody has set another one since."""
    for config, old in before:
        if _read(config) == name:
            config._attn_implementation_internal = old  # noqa: SLF001 - the public setter would overwrite sub-configs


def _read(config: Any) -> str | None:
    # transformers has no public getter.
    return getattr(config, "_attn_implementation", None)


def _transformers_models(model: nn.Module) -> Iterator[Any]:
    """The outermost transformers models in a module: itself, or those it wraps."""
    if _is_transformers(model):
        yield model
        return
    for child in model.children():
        yield from _transformers_models(child)


def _is_transformers(module: nn.Module) -> bool:
    library = sys.modules.get("transformers.modeling_utils")
    return library is not None and isinstance(module, library.PreTrainedModel)


def _configs(model: Any) -> Iterator[tuple[str, Any]]:
    """Every config of a model and its sub-models once, with the class name of its first owner."""
    seen: set[int] = set()
    for module in model.modules():
        config = getattr(module, "config", None)
        if _is_transformers(module) and id(config) not in seen:
            seen.add(id(config))
            yield type(module).__name__, config


def _asking_for_exact_name(model: nn.Module) -> str | None:
    """The module whose code asks for the attention named exactly "sdpa", if any of the model's does."""
    kinds = {kind.__module__: kind for kind in map(type, model.modules())}
    return next((name for name, kind in kinds.items() if _ASKS_FOR_SDPA.search(_source(kind))), None)


def _refusal(model: Any, mode: Mode, kept: dict[str, str | None]) -> str:
    names = ", ".join(f"{owner} stays at {old}" for owner, old in kept.items())
    start = f"{type(model).__name__} does not let its attention be switched to '{mode.name}' ({names})"
    if not _calls_sdpa(model):
        return f"{start}: it has attention of its own that never calls SDPA, so it is not concerned."
    return (
        f"{start}: it calls F.scaled_dot_product_attention itself. What works: {_install_hint(mode)}, "
        'or load the model with attn_implementation="eager".'
    )


def _install_hint(mode: Mode) -> str:
    return f'mpsdiag.install("{mode.name if mode.process_wide else "safe_sdpa"}")'


def _calls_sdpa(model: Any) -> bool:
    return any(
        "scaled_dot_product_attention(" in _source(kind) for kind in {type(m) for m in model.modules()}
    )


def _source(kind: type) -> str:
    """The source of the module a class is from; empty for torch's own and for what has no source."""
    module = sys.modules.get(kind.__module__)
    if module is None or kind.__module__.split(".")[0] == "torch":
        return ""
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):
        return ""


def _require_available(mode: Mode, model: nn.Module) -> None:
    weight = next(model.parameters(), None)
    if weight is not None:
        dtype = str(weight.dtype).removeprefix("torch.")
        reason = mode.unavailable(str(weight.device), dtype, training=False)
        if reason is not None:
            raise BadInput(f"Attention mode '{mode.name}' is not available here: {reason}.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' warning about a refusal back: the error says it, and says what to do."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
