"""The parts of a model that matter to attention: the transformers models in it, their configs, their code."""

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from mpsdiag.fixes.layers import MARK

# Modeling code that tests for the exact name treats every other name as something other than SDPA.
_ASKS_FOR_SDPA = re.compile(r"_attn_implementation\s*(?:==|!=|(?:not\s+)?in\b)[^\n]*[\"']sdpa[\"']")
_HAS_ATTENTION = re.compile(r"^class \w*Attention\w*\(nn\.Module\)", re.MULTILINE)


def transformers_models(model: nn.Module) -> Iterator[Any]:
    """The outermost transformers models in a module: itself, or those it wraps, as peft and compiled models do."""
    if is_transformers(model):
        yield model
        return
    for child in model.children():
        yield from transformers_models(child)


def is_transformers(module: nn.Module) -> bool:
    """Whether a module is a transformers model (and not a layer of one). Imports nothing."""
    library = sys.modules.get("transformers.modeling_utils")
    return library is not None and isinstance(module, library.PreTrainedModel)


def configs_in_use(model: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
    """Every config in which attention is looked up, once, with the first module that holds it.

    These are the configs of models, and those of attention modules that have their own copies.
    """
    seen: list[Any] = []
    for module in model.modules():
        config = getattr(module, "config", None)
        asks = is_transformers(module) or "Attention" in type(module).__name__
        if asks and hasattr(config, "_attn_implementation") and not among(config, seen):
            seen.append(config)
            yield module, config


def with_parts(configs: Iterable[Any]) -> list[Any]:
    """The configs and all their sub-configs, each once."""
    found: list[Any] = []
    waiting = list(configs)
    while waiting:
        config = waiting.pop()
        if config is not None and not among(config, found):
            found.append(config)
            waiting += [getattr(config, key, None) for key in getattr(config, "sub_configs", {})]
    return found


def set_attention(config: Any) -> str | None:
    """The attention set in a config; transformers has no public getter."""
    return getattr(config, "_attn_implementation", None)


def runs_eager(model: nn.Module) -> bool:
    """Whether transformers' eager attention is set in a model or a part of it."""
    return any(set_attention(config) == "eager" for _, config in configs_in_use(model))


def mark(model: nn.Module, mode: str | None) -> None:
    """Give all modules of a model a mode under the name "sdpa", or take it away."""
    for module in model.modules():
        if mode is None:
            module.__dict__.pop(MARK, None)
        else:
            setattr(module, MARK, mode)


def among(config: Any, configs: Iterable[Any]) -> bool:
    """Whether a config is one of several, by identity: configs compare by value and are not hashable."""
    return any(config is other for other in configs)


def without_sdpa(model: nn.Module) -> list[Any]:
    """The configs of a model and its sub-models whose class says that it cannot use SDPA."""
    parts: Any = filter(is_transformers, model.modules())
    return [part.config for part in parts if getattr(part, "_supports_sdpa", True) is False]


def looks_attention_up(model: nn.Module) -> bool:
    """Whether the code of a model looks up its attention by name at each forward, according to transformers."""
    source = _source(type(model))
    return bool(source) and (not _HAS_ATTENTION.search(source) or "ALL_ATTENTION_FUNCTIONS" in source)


def calls_sdpa(model: nn.Module) -> bool:
    """Whether the code of a model calls `scaled_dot_product_attention` itself anywhere."""
    return any("scaled_dot_product_attention(" in _source(kind) for kind in _classes(model))


def asks_for_exact_name(model: nn.Module) -> bool:
    """Whether the code of a model tests anywhere for the attention named exactly "sdpa"."""
    return any(_ASKS_FOR_SDPA.search(_source(kind)) for kind in _classes(model))


def _classes(model: nn.Module) -> list[type]:
    """One class for each Python module that defines classes of a model."""
    return list({kind.__module__: kind for kind in map(type, model.modules())}.values())


def _source(kind: type) -> str:
    """The source of the Python module that defines a class; empty for torch's own and if there is no source."""
    module = sys.modules.get(kind.__module__)
    if module is None or kind.__module__.split(".", maxsplit=1)[0] == "torch":
        return ""
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):
        return ""
