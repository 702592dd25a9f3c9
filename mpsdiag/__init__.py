"""mpsdiag: why attention gives NaN or quietly wrong numbers on padded batches, and which fix resolves it.

The names below are loaded on first use, so that `import mpsdiag` needs neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpsdiag.checking.run import check
    from mpsdiag.emulation import emulate_mps
    from mpsdiag.fixes import apply, install
    from mpsdiag.tracing.api import trace
    from mpsdiag.tracing.cases.recorder import BadBatchRecorder
    from mpsdiag.trainers.callbacks import NonFiniteCallback
    from mpsdiag.trainers.mps_safe import MPSSafeTrainer

__version__ = "0.1.0"

_HOME = {
    "BadBatchRecorder": "mpsdiag.tracing.cases.recorder",
    "check": "mpsdiag.checking.run",
    "emulate_mps": "mpsdiag.emulation",
    "apply": "mpsdiag.fixes",
    "install": "mpsdiag.fixes",
    "MPSSafeTrainer": "mpsdiag.trainers.mps_safe",
    "NonFiniteCallback": "mpsdiag.trainers.callbacks",
    "trace": "mpsdiag.tracing.api",
}

__all__ = [
    "BadBatchRecorder",
    "MPSSafeTrainer",
    "NonFiniteCallback",
    "__version__",
    "apply",
    "check",
    "emulate_mps",
    "install",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'mpsdiag' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
