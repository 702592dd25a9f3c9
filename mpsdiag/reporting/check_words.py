"""The sentences that the terminal and the Markdown form of a Diagnosis share."""

from __future__ import annotations

import math

from mpsdiag.checking.diagnosis import Diagnosis, FixResult, ScenarioResult
from mpsdiag.scenario.scenario import FirstNonfinite


def headline(diagnosis: Diagnosis) -> str:
    """One line: the verdict, and of what."""
    return f"{diagnosis.verdict.replace('_', ' ')}: {subject(diagnosis)}"


def subject(diagnosis: Diagnosis) -> str:
    """What was looked at; an emulation is always called one."""
    if diagnosis.emulated is not None:
        emulated = diagnosis.emulated
        return f"EMULATED MPS of torch {emulated.release} on macOS {emulated.macos} (on the CPU)"
    torch = f"torch {diagnosis.environment.versions.get('torch')}"
    if not anything_ran(diagnosis):
        return f"{diagnosis.device}, on which nothing ran ({torch})"
    return f"{diagnosis.device} with {torch}"


def anything_ran(diagnosis: Diagnosis) -> bool:
    """Whether there is anything that was measured, or emulated: a probe that is no skip, or the scenario."""
    return diagnosis.scenario is not None or any(probe.status != "skip" for probe in diagnosis.probes)


def subtitle(diagnosis: Diagnosis) -> str:
    """Say whether the numbers are measured or emulated, and with which transformers."""
    transformers = f"transformers {diagnosis.environment.versions.get('transformers')}"
    if not anything_ran(diagnosis):
        return f"Nothing was measured: no probe ran. {transformers}."
    if diagnosis.emulated is not None:
        return f"Nothing here was measured on MPS: a model of its kernels ran on the CPU. {transformers}."
    return f"Measured on this machine's {diagnosis.device}. {transformers}."


def number(value: float | None) -> str:
    """A loss or a difference, or what it is instead of a number."""
    if value is None:
        return "-"
    return f"{value:.6g}" if math.isfinite(value) else str(value)


def place(first: FirstNonfinite | None) -> str:
    """Where the first non-finite value was seen."""
    if first is None:
        return "none"
    layer = "outside the layers" if first.layer is None else f"layer {first.layer}"
    return f"{layer}, {first.module or 'model'}, {first.operation}, {first.rows} rows (batch {first.batch})"


def cause(scenario: ScenarioResult) -> str | None:
    """What the trace of the scenario found."""
    found = scenario.cause
    if found is None:
        return None
    also = f"; also {', '.join(found.also)}" if found.also else ""
    return f"{found.cause}: {found.summary}{also}"


def predicted(scenario: ScenarioResult) -> str:
    """Dead rows as predicted from config and data, and where they come from."""
    exposure = scenario.exposure
    if exposure is None:
        return "-"
    if not exposure.rows:
        return "0" if exposure.causal else "0 (not a causal model: each query sees every real token)"
    why = "; ".join(f"{count} from {reason}" for reason, count in exposure.reasons.items())
    kept = "" if exposure.reach_sdpa else f"; attention '{scenario.attention}' hands none to F.sdpa"
    return f"{exposure.rows}, in {exposure.sequences} of {exposure.of_sequences} sequences ({why}{kept})"


def fix_mark(fix: FixResult) -> str:
    """Resolved and exact, resolved, or not."""
    if not fix.resolves:
        return "no"
    return "yes, exact" if fix.exact else "yes"
