"""mpsdiag: why attention gives NaN or quietly wrong numbers on padded batches, and which fix resolves it.

The names below are loaded on first use, so that `import mpsdiag` needs neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mpsdiag.fixes.imports import when_imported

if TYPE_CHECKING:
    from mpsdiag.checking.diagnosis import Diagnosis as Diagnosis
    from mpsdiag.checking.run import check as check
    from mpsdiag.emulation.mode import emulate_mps as emulate_mps
    from mpsdiag.errors import BadInput as BadInput
    from mpsdiag.errors import CannotDecide as CannotDecide
    from mpsdiag.fixes.model import apply as apply
    from mpsdiag.fixes.modes import Handle as Handle
    from mpsdiag.fixes.process import install as install
    from mpsdiag.invariance.measure import assert_padding_invariant as assert_padding_invariant
    from mpsdiag.invariance.measure import padding_invariance as padding_invariance
    from mpsdiag.reporting.api import bench as bench
    from mpsdiag.reporting.api import report as report
    from mpsdiag.reporting.story.report import Report as Report
    from mpsdiag.sdpa.safe import safe_scaled_dot_product_attention as safe_scaled_dot_product_attention
    from mpsdiag.tracing.cases.recorder import BadBatchRecorder as BadBatchRecorder
    from mpsdiag.tracing.origin import Origin as Origin
    from mpsdiag.tracing.process.session import watch as watch
    from mpsdiag.tracing.run import trace as trace
    from mpsdiag.trainers.callbacks import NonFiniteCallback as NonFiniteCallback
    from mpsdiag.trainers.mps_safe import MPSSafeTrainer as MPSSafeTrainer

__version__ = "0.1.0"

_HOME = {
    "BadBatchRecorder": "mpsdiag.tracing.cases.recorder",
    "BadInput": "mpsdiag.errors",
    "CannotDecide": "mpsdiag.errors",
    "Diagnosis": "mpsdiag.checking.diagnosis",
    "Handle": "mpsdiag.fixes.modes",
    "Origin": "mpsdiag.tracing.origin",
    "Report": "mpsdiag.reporting.story.report",
    "bench": "mpsdiag.reporting.api",
    "report": "mpsdiag.reporting.api",
    "safe_scaled_dot_product_attention": "mpsdiag.sdpa.safe",
    "check": "mpsdiag.checking.run",
    "emulate_mps": "mpsdiag.emulation.mode",
    "apply": "mpsdiag.fixes.model",
    "install": "mpsdiag.fixes.process",
    "assert_padding_invariant": "mpsdiag.invariance.measure",
    "padding_invariance": "mpsdiag.invariance.measure",
    "MPSSafeTrainer": "mpsdiag.trainers.mps_safe",
    "NonFiniteCallback": "mpsdiag.trainers.callbacks",
    "trace": "mpsdiag.tracing.run",
    "watch": "mpsdiag.tracing.process.session",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604 - the keys are strings


# `attn_implementation="safe_sdpa"` works whichever of the two is imported first; transformers is not imported for it.
when_imported("transformers.modeling_utils", lambda: import_module("mpsdiag.fixes.registration").register_all())


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'mpsdiag' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
