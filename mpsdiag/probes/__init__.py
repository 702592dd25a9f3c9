"""The probes room: the catalogue of known defects, and how to run it. Nothing here loads torch until a probe is run."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mpsdiag.probes.declaration import Check, Finding, Probe
from mpsdiag.probes.known import CATALOGUE, find
from mpsdiag.probes.prediction import predicted, surprises

if TYPE_CHECKING:
    from mpsdiag.probes.run import run_level, run_probe

__all__ = ["CATALOGUE", "Check", "Finding", "Probe", "find", "predicted", "run_level", "run_probe", "surprises"]


def __getattr__(name: str) -> Any:
    if name in {"run_level", "run_probe"}:
        return getattr(import_module("mpsdiag.probes.run"), name)
    raise AttributeError(f"module 'mpsdiag.probes' has no attribute {name!r}")
