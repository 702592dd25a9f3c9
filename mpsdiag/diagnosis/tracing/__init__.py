"""Trace: where the first non-finite value of a run is born, at the level of the operation, and why."""

from mpsdiag.diagnosis.tracing.api import trace
from mpsdiag.diagnosis.tracing.origin import CAUSES, Cause, Origin

__all__ = ["CAUSES", "Cause", "Origin", "trace"]
