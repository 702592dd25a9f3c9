"""The whole process: `F.scaled_dot_product_attention` and transformers' "sdpa" entry, with one mode in force.

Both names get a layer in front of what they held. A layer asks, at each call, which mode is in force; with
none it passes the call on. So modes can be removed in any order, and a layer that another library has wrapped
meanwhile stays where it is and does nothing.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from mpsdiag.errors import BadInput
from mpsdiag.fixes.attention import repaired_attention
from mpsdiag.fixes.catalogue import Mode, mode_named
from mpsdiag.fixes.handle import Handle
from mpsdiag.fixes.imports import when_imported
from mpsdiag.fixes.kernels import Kernel
from mpsdiag.fixes.masks import Repair

_Function = Callable[..., Any]


@dataclass
class _InForce:
    """What the layers do at present; a plain object, so that compiled code guards on it."""

    kernel: Kernel | None = None
    repair: Repair | None = None
    layer: _Function | None = None  # our last one on F.scaled_dot_product_attention


_LOCK: Final = threading.RLock()
_IN_FORCE: Final = _InForce()
_INSTALLED: Final[list[Mode]] = []
# Each layer that was made, with what it stands before. By identity: a wrapper may copy attributes of ours.
_LAYERS: Final[weakref.WeakKeyDictionary[_Function, _Function]] = weakref.WeakKeyDictionary()


def install(name: str) -> Handle:
    """Put an attention mode in place for every model of the process that uses SDPA, now or later.

    Reaches transformers models through their "sdpa" entry, and whatever calls
    `F.scaled_dot_product_attention` itself, such as Falcon, remote code, `nn.MultiheadAttention`, other
    libraries. Models set to another attention ("eager", "flex_attention") are left alone. Of several modes that
    are installed the last one is in force.

    Args:
        name: One of `MODES`. `sdpa` puts stock SDPA in force; `eager` computes SDPA in plain operations.

    Returns:
        The handle that removes it; also a context manager.

    Raises:
        BadInput: No such mode, or one that cannot stand in for SDPA.
    """
    mode = mode_named(name)
    if not mode.process_wide:
        raise BadInput(
            f"Attention mode '{name}' cannot be installed process-wide: it takes masks of another kind than "
            f'F.scaled_dot_product_attention. For one model: mpsdiag.apply(model, "{name}").'
        )
    # One object for each call of install: the same mode may be installed twice.
    entry = Mode(mode.name, mode.exact, mode.summary)
    with _LOCK:
        _INSTALLED.append(entry)
        _put_layers()
        _update()
    when_imported("transformers.modeling_utils", _put_layers)

    def remove() -> None:
        with _LOCK:
            _INSTALLED[:] = [other for other in _INSTALLED if other is not entry]
            _update()
            if not _INSTALLED:
                _take_layers_away()

    return Handle(name, remove)


def installed() -> tuple[str, ...]:
    """The modes installed process-wide, the one in force last."""
    return tuple(mode.name for mode in _INSTALLED)


def _update() -> None:
    mode = _INSTALLED[-1] if _INSTALLED else None
    _IN_FORCE.kernel = mode.kernel() if mode else None
    _IN_FORCE.repair = mode.repair() if mode else None


def _put_layers() -> None:
    """Stand in front of both names, unless the outermost function there is a layer already."""
    if not _INSTALLED:
        return
    function = torch.nn.functional.scaled_dot_product_attention
    if function not in _LAYERS:
        function = torch.nn.functional.scaled_dot_product_attention = _sdpa_layer(function)
    _IN_FORCE.layer = function
    interface = _attention_interface()
    if interface is not None:
        entry = interface._global_mapping["sdpa"]  # noqa: SLF001 - the public view may be shadowed by an instance
        if entry not in _LAYERS:
            interface.register("sdpa", _attention_layer(entry))


def _take_layers_away() -> None:
    """Restore what each name held where the layer is outermost; a wrapped one stays and passes calls on."""
    function = torch.nn.functional.scaled_dot_product_attention
    if function in _LAYERS:
        torch.nn.functional.scaled_dot_product_attention = _LAYERS[function]
    interface = _attention_interface()
    if interface is not None:
        entry = interface._global_mapping["sdpa"]  # noqa: SLF001 - as above
        if entry in _LAYERS:
            interface.register("sdpa", _LAYERS[entry])


def _attention_interface() -> Any:
    library = sys.modules.get("transformers.modeling_utils")
    return getattr(library, "AttentionInterface", None)


def _sdpa_layer(previous: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # wraps: whoever compares names, as our own emulation does, still reads 'scaled_dot_product_attention'.
    @functools.wraps(previous, updated=())
    def scaled_dot_product_attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **options: Any
    ) -> Tensor:
        kernel = _IN_FORCE.kernel
        if kernel is None:
            return previous(query, key, value, attn_mask, *rest, **options)
        return kernel(previous, query, key, value, attn_mask, *rest, **options)

    _LAYERS[scaled_dot_product_attention] = previous
    return scaled_dot_product_attention


def _attention_layer(previous: Callable[..., Any]) -> Callable[..., Any]:
    # What transformers has there calls torch's function by its public name: our layer on that does the work once.
    # Another library's entry may hold a function of its own, and another library may have replaced the public name.
    by_name = getattr(previous, "__module__", None) == "transformers.integrations.sdpa_attention"

    @functools.wraps(previous, updated=())
    def sdpa_attention_forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *rest: Any,
        **options: Any,
    ) -> Any:
        repair = _IN_FORCE.repair
        done_there = by_name and torch.nn.functional.scaled_dot_product_attention is _IN_FORCE.layer
        if repair is None or done_there:
            return previous(module, query, key, value, attention_mask, *rest, **options)
        return repaired_attention(
            previous, repair, module, query, key, value, attention_mask, *rest, **options
        )

    _LAYERS[sdpa_attention_forward] = previous
    return sdpa_attention_forward
