"""Run one probe in both grad modes, or all probes of a level, and turn what happened into findings."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

from mpsdiag.device import kind_of
from mpsdiag.emulation import EmulatedAbort, Emulation
from mpsdiag.emulation.aborts import OnAbort
from mpsdiag.probes.catalogue import CATALOGUE, find
from mpsdiag.probes.declaration import ABORTS, MODES, Check, Finding, Mode, ModeResult, Probe, Skip
from mpsdiag.probes.isolation import Job, run_isolated
from mpsdiag.words import ProbeStatus

WORST_FIRST: tuple[ProbeStatus, ...] = ("fail", "error", "pass", "skip")


def run_mode(
    probe: Probe, mode: Mode, device: str, emulation: Emulation | None, *, on_abort: OnAbort = "raise"
) -> ModeResult:
    """Run a probe's trigger in one grad mode, in this process; whatever it raises becomes a status.

    Args:
        probe: What to run.
        mode: Whether gradients are wanted.
        device: Where to run it; `cpu` with an emulation.
        emulation: The MPS to emulate, if one.
        on_abort: Whether a modelled abort raises, or really ends this process.
    """
    from mpsdiag.probes.lab import Lab

    if probe.trigger is None:
        return ModeResult("skip", reason=probe.never_run or "nothing to run")
    checks: list[Check] = []
    try:
        with emulation.enter(on_abort) if emulation else nullcontext():
            checks.extend(probe.trigger(Lab(device, emulation, mode)))
    except Skip as reason:
        return ModeResult(_status(checks), tuple(checks), str(reason))
    except EmulatedAbort as abort:
        checks.append(Check(_one_line(abort), ok=False, seen=ABORTS, mode=mode))
    except Exception as problem:  # noqa: BLE001 - a probe that breaks is a status, never a crash of the tool
        return ModeResult("error", tuple(checks), f"{type(problem).__name__}: {_one_line(problem)}")
    return ModeResult(_status(checks), tuple(checks))


def conclude(probe: Probe, results: Mapping[Mode, ModeResult], seconds: float) -> Finding:
    """Put the outcomes of the grad modes together; a skip is never a pass."""
    statuses = {mode: result.status for mode, result in results.items()}
    status: ProbeStatus = next((word for word in WORST_FIRST if word in statuses.values()), "skip")
    checks = [check for result in results.values() for check in result.checks]
    failed = tuple(check for check in checks if not check.ok)
    seen = ", ".join(Counter(check.seen for check in (failed or checks)))
    return Finding(
        id=probe.id,
        title=probe.title,
        status=status,
        detail=_detail(probe, status, checks, failed, results),
        training=statuses.get("training", "skip"),
        evaluation=statuses.get("evaluation", "skip"),
        cases=len(checks),
        failed=failed,
        remedy=probe.remedy,
        upstream=probe.upstream,
        seen=seen,
        seconds=seconds,
    )


def run_probe(
    probe_id: str, *, device: str, emulation: Emulation | None = None, isolate: bool | None = None
) -> Finding:
    """Run one probe in both grad modes.

    Args:
        probe_id: Such as `SDPA001`.
        device: Where to run it; `cpu` with an emulation.
        emulation: The MPS to emulate, if one.
        isolate: Whether in a child process; None leaves it to the probe.

    Raises:
        BadInput: No probe has this id.
    """
    return _run_all([find(probe_id)], device, emulation, isolate=isolate)[0]


def run_level(level: int, device: str, emulation: Emulation | None = None) -> list[Finding]:
    """Run every probe of this level and below, in the order of their ids; level 3 on a real GPU all in children."""
    chosen = [probe for probe in CATALOGUE.values() if probe.level <= level]
    return _run_all(
        chosen, device, emulation, isolate=True if level >= 3 and kind_of(device) == "mps" else None
    )


def _run_all(
    probes: Sequence[Probe], device: str, emulation: Emulation | None, *, isolate: bool | None
) -> list[Finding]:
    """Run probes; those that want a child share one as long as it lives."""
    apart = [probe for probe in probes if probe.trigger and (probe.isolated if isolate is None else isolate)]
    jobs: list[Job] = [(probe.id, mode) for probe in apart for mode in MODES]
    answers = run_isolated(jobs, device, emulation) if jobs else {}
    findings = []
    for probe in probes:
        if probe in apart:
            results = {mode: answers[probe.id, mode][0] for mode in MODES}
            seconds = sum(answers[probe.id, mode][1] for mode in MODES)
        else:
            begin = time.perf_counter()
            results = {mode: run_mode(probe, mode, device, emulation) for mode in MODES}
            seconds = time.perf_counter() - begin
        findings.append(conclude(probe, results, seconds))
    return findings


def _status(checks: Sequence[Check]) -> ProbeStatus:
    if not checks:
        return "skip"
    return "pass" if all(check.ok for check in checks) else "fail"


def _detail(
    probe: Probe,
    status: ProbeStatus,
    checks: Sequence[Check],
    failed: Sequence[Check],
    results: Mapping[Mode, ModeResult],
) -> str:
    reasons = list(dict.fromkeys(result.reason for result in results.values() if result.reason))
    if status in {"skip", "error"}:
        return "; ".join(reasons)
    parts = []
    if failed:
        modes = " and ".join(dict.fromkeys(check.mode for check in failed))
        example = failed[0]
        worst = (
            f" (error {example.error:.3g}, allowed {example.bound:.3g})" if example.error is not None else ""
        )
        parts.append(
            f"{len(failed)} of {len(checks)} outputs wrong, in {modes}; {example.name}: {example.seen}{worst}"
        )
    else:
        parts.append(f"{len(checks)} of {len(checks)} outputs right")
    if probe.note:
        parts.append(probe.note(checks))
    return "; ".join(parts)


def _one_line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:300]
