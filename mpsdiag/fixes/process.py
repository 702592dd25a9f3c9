"""The whole process: one mode in force for everything that calls SDPA."""

from __future__ import annotations

from typing import Final

from mpsdiag.errors import BadInput
from mpsdiag.fixes import layers
from mpsdiag.fixes.catalogue import Mode, mode_named
from mpsdiag.fixes.handle import Handle

_INSTALLED: Final[list[tuple[object, Mode]]] = []


def install(name: str) -> Handle:
    """Put an attention mode in place for every model of the process that uses SDPA, now or later.

    Reaches transformers models through their "sdpa" entry, and whatever calls `F.scaled_dot_product_attention`
    itself, such as Falcon, remote code, `nn.MultiheadAttention`, other libraries. Models set to another attention
    ("eager", "flex_attention") are left alone. Of several modes that are installed the last one is in force.

    Args:
        name: One of `MODES`. `sdpa` puts stock SDPA in force; `eager` computes SDPA in plain operations.

    Returns:
        The handle that removes it; also a context manager.

    Raises:
        BadInput: No such mode, or one that cannot stand in for SDPA.
    """
    mode = mode_named(name, process_wide=True)
    if not mode.process_wide:
        raise BadInput(
            f"Attention mode '{name}' cannot be installed process-wide: it takes masks of another kind than "
            f'F.scaled_dot_product_attention. For one model: mpsdiag.apply(model, "{name}").'
        )
    installation = object()
    with layers.LOCK:
        _INSTALLED.append((installation, mode))
        release = layers.hold(function=True)
        _update()

    def remove() -> None:
        with layers.LOCK:
            _INSTALLED[:] = [entry for entry in _INSTALLED if entry[0] is not installation]
            _update()
            release()

    return Handle(name, remove)


def installed() -> tuple[str, ...]:
    """The modes installed process-wide, the one in force last."""
    return tuple(mode.name for _, mode in _INSTALLED)


def _update() -> None:
    mode = _INSTALLED[-1][1] if _INSTALLED else None
    layers.IN_FORCE.instead = mode.instead() if mode else None
    layers.IN_FORCE.repair = mode.repair() if mode else None
