"""The catalogue of attention modes: each puts itself in place, for a model or a process, and removes itself.

The names below are loaded on first use, so that a start-up hook can import this room without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpsdiag.fixes.handle import Handle
    from mpsdiag.fixes.model import apply, put_in_place
    from mpsdiag.fixes.modes import MODES, Mode
    from mpsdiag.fixes.process import install

__all__ = ["MODES", "Handle", "Mode", "apply", "install", "put_in_place"]

_HOME = {
    "MODES": "modes",
    "Mode": "modes",
    "Handle": "handle",
    "apply": "model",
    "install": "process",
    "put_in_place": "model",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
