"""The whole process: one mode in force for everything that calls SDPA."""

import logging
import sys
from operator import itemgetter
from typing import Final

import torch

from mpsdiag.errors import BadInput
from mpsdiag.fixes import layers
from mpsdiag.fixes.modes import Handle, Mode, mode_named
from mpsdiag.fixes.positions import install_positions
from mpsdiag.words import POSITIONS

logger = logging.getLogger(__name__)

_INSTALLED: Final[list[tuple[object, Mode]]] = []


def install(name: str) -> Handle:
    """Put an attention mode in place for every model of the process that uses SDPA, now or later, or `positions`.

    Reaches transformers models through their "sdpa" entry, and whatever calls `F.scaled_dot_product_attention`
    itself, such as Falcon, remote code, `nn.MultiheadAttention`, other libraries. Models set to another attention
    ("eager", "flex_attention") are left alone. Of several modes that are installed the last one is in force.

    Two things are not reached. Modules that imported the function itself before, as in `from torch.nn.functional
    import scaled_dot_product_attention`, go on with it: they are looked for, named in a warning, and kept in the
    handle's `unreached`. `mpsdiag run --fix` installs before any of them is imported. And TorchScript compiles
    attention to torch's own operator, as without a mode; what is traced with a mode in force keeps the mode.

    Args:
        name: One of `MODES`, or `positions`, which is in force beside them. `sdpa` puts stock SDPA in force; `eager`
            computes SDPA in plain operations.

    Returns:
        The handle that removes it; also a context manager.

    Raises:
        BadInput: No such mode, or one that cannot stand in for SDPA.
    """
    if name == POSITIONS:
        return install_positions()
    mode = mode_named(name, process_wide=True)
    if not mode.process_wide:
        raise BadInput(
            f"Attention mode '{name}' cannot be installed process-wide: it takes masks of another kind than "
            f'F.scaled_dot_product_attention. For one model: mpsdiag.apply(model, "{name}").'
        )
    installation = (object(), mode)
    with layers.LOCK:
        _INSTALLED.append(installation)
        release = layers.hold(function=True)
        _update()
    unreached = () if name == "sdpa" else _bound_before()
    if unreached:
        logger.warning(
            "%s does not reach %s: bound to torch's function before mpsdiag.install. Call install before they are "
            "imported, or run the script with: mpsdiag run --fix %s SCRIPT",
            name,
            ", ".join(unreached),
            name,
        )

    def remove() -> None:
        with layers.LOCK:
            _INSTALLED.remove(installation)
            _update()
            release()

    return Handle(name, remove, unreached)


def _bound_before() -> tuple[str, ...]:
    """The names in imported modules that hold torch's function itself, outside torch."""
    original = torch._C._nn.scaled_dot_product_attention  # noqa: SLF001
    modules = {id(loaded): (name, loaded) for name, loaded in reversed(sys.modules.items())}
    return tuple(
        f"{module}.{name}"
        for module, loaded in sorted(modules.values(), key=itemgetter(0))
        if module.split(".", maxsplit=1)[0] != "torch"
        for name, value in list(getattr(loaded, "__dict__", {}).items())
        if value is original
    )


def installed() -> tuple[str, ...]:
    """The modes installed process-wide, the one in force last."""
    return tuple(mode.name for _, mode in _INSTALLED)


def _update() -> None:
    mode = _INSTALLED[-1][1] if _INSTALLED else None
    layers.IN_FORCE.instead = mode.instead() if mode else None
    layers.IN_FORCE.repair = mode.repair() if mode else None
