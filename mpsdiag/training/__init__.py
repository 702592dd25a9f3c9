"""Data, models, trainers that can be trusted on MPS, callbacks, and the pipeline made of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpsdiag.training.callbacks import NonFiniteCallback
    from mpsdiag.training.mps_safe import MPSSafeTrainer

__all__ = ["MPSSafeTrainer", "NonFiniteCallback"]

_HOME = {"MPSSafeTrainer": "mps_safe", "NonFiniteCallback": "callbacks"}


def __getattr__(name: str) -> Any:
    """Load on first use: importing this room alone needs neither torch nor transformers."""
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
