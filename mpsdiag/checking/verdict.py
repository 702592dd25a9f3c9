"""From evidence to verdict: pure functions, no torch. The kernel and the scenario are judged apart; either makes it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mpsdiag.checking.diagnosis import Judged, ProbeResult
from mpsdiag.scenario.scenario import Measured, finite


def kernel_verdict(probes: Sequence[ProbeResult]) -> Judged:
    """Judge the attention operation from its probes: one failure affects, a broken probe leaves it undecided."""
    failed = [probe for probe in probes if probe.status == "fail"]
    if failed:
        listed = "; ".join(f"{probe.id} {probe.title} ({_where(probe)})" for probe in failed)
        return Judged(verdict="affected", reason=f"failed: {listed}")
    broken = [probe.id for probe in probes if probe.status == "error"]
    if broken:
        return Judged(verdict="undecided", reason=f"the probe itself broke: {', '.join(broken)}")
    passed = [probe.id for probe in probes if probe.status == "pass"]
    if passed:
        return Judged(verdict="not_affected", reason=f"{len(passed)} of {len(probes)} probes ran, all passed")
    return Judged(verdict="undecided", reason="no probe could run")


def scenario_verdict(outcome: Measured) -> Judged:
    """Judge the scenario. A loss that is non-finite on the CPU as well is not this device's doing."""
    if outcome.status == "ok":
        return Judged(verdict="not_affected", reason=outcome.reason)
    if outcome.status == "nan" and not _device_is_to_blame(outcome):
        return Judged(
            verdict="undecided",
            reason=f"{outcome.reason}, but the CPU gives the same with the same weights and data: "
            "the attention of this device is not the cause (labels all -100, bad weights, divergence?)",
        )
    return Judged(verdict="affected", reason=outcome.reason)


def overall(kernel: Judged, scenario: Judged | None) -> Judged:
    """Put both together: affected wins, then undecided, then not affected."""
    parts = [("kernel", kernel)] + ([("scenario", scenario)] if scenario else [])
    for verdict in ("affected", "undecided"):
        saying = [f"{name}: {part.reason}" for name, part in parts if part.verdict == verdict]
        if saying:
            return Judged(verdict=verdict, reason="; ".join(saying))
    return Judged(verdict="not_affected", reason="; ".join(f"{name}: {part.reason}" for name, part in parts))


def _device_is_to_blame(outcome: Measured) -> bool:
    """In training the first step decides (later weights are already spoilt), in evaluation the same weights do."""
    if outcome.train_losses and not math.isfinite(outcome.train_losses[0]):
        return finite(outcome.reference_first_train_loss)
    return finite(outcome.reference_eval_loss)


def _where(probe: ProbeResult) -> str:
    hit = [name for name in ("training", "evaluation") if getattr(probe, name) == "fail"]
    return " and ".join(hit) or "level 3"
