"""The whole process: one mode for everything that calls SDPA."""

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
    """Install an attention mode, or `positions`, for every model of the process that uses SDPA, now or later.

    It reaches transformers models through their "sdpa" entry, and all code that calls
    `F.scaled_dot_product_attention` itself, such as Falcon, remote code, `nn.MultiheadAttention` and other
    libraries. Models set to another attention ("eager", "flex_attention") are left alone. If several modes are
    installed, the last one is in force.

    Two things are not reached. Modules that imported the function itself earlier, as in `from torch.nn.functional
    import scaled_dot_product_attention`, keep using it: they are named in a warning and in the handle's
    `unreached`. `mpsdiag run --fix` installs the mode before any of them is imported. And TorchScript compiles
    attention to torch's own operator, as without a mode; code that is traced with a mode in force keeps the mode.

    Args:
        name: One of `MODES`, or `positions`, which combines with them. `sdpa` installs stock SDPA; `eager` computes
            SDPA with plain operations.

    Returns:
        The handle that removes it; also a context manager.

    Raises:
        BadInput: The mode does not exist, or cannot replace SDPA.
    """
    if name == POSITIONS:
        return install_positions()
    mode = mode_named(name, process_wide=True)
    if not mode.process_wide:
        raise BadInput(
            f"Attention mode '{name}' cannot be installed process-wide: it takes other masks than "
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
    """The names in imported modules outside torch that hold torch's function itself."""
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
