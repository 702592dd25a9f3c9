"""From a machine to a verdict: scenario through stock transformers, evidence, what follows; and the trace."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpsdiag.diagnosis.examination import check
    from mpsdiag.diagnosis.tracing import Origin, trace
    from mpsdiag.diagnosis.tracing.recorder import BadBatchRecorder

__all__ = ["BadBatchRecorder", "Origin", "check", "trace"]

_HOME = {
    "BadBatchRecorder": "tracing.recorder",
    "Origin": "tracing",
    "check": "examination",
    "trace": "tracing",
}


def __getattr__(name: str) -> Any:
    """Load on first use: a check of the kernel alone needs no tracer."""
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
