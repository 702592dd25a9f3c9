"""Trace: which operation gives the first non-finite value of a run, and why."""

from mpsdiag.tracing.api import trace
from mpsdiag.tracing.origin import CAUSES, Cause, Origin

__all__ = ["CAUSES", "Cause", "Origin", "trace"]
