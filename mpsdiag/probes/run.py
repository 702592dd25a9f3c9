"""Run one probe in both grad modes, or all probes of a level, and compare with the prediction for a torch release."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from mpsdiag.device import kind_of
from mpsdiag.emulation.releases import RELEASES
from mpsdiag.emulation.selection import EmulatedAbort, Emulation, OnAbort
from mpsdiag.errors import first_line
from mpsdiag.probes.children import Job, run_isolated
from mpsdiag.probes.declaration import ABORTS, MODES, Check, Finding, Mode, ModeResult, Probe, Skip
from mpsdiag.probes.known import CATALOGUE, find
from mpsdiag.probes.sweep import SWEEP, SWEEP_PROBE, attribute
from mpsdiag.words import ProbeStatus

BACKENDS: Final[dict[str, tuple[str, ...]]] = {
    "cuda": ("MATH", "EFFICIENT_ATTENTION", "FLASH_ATTENTION", "CUDNN_ATTENTION"),
    "xpu": ("MATH", "FLASH_ATTENTION"),
}
"""By kind of device, names of `torch.nn.attention.SDPBackend` to force in turn. MPS heeds none of them (facts, 1)."""
WORST_FIRST: tuple[ProbeStatus, ...] = ("fail", "error", "pass", "skip")


def run_mode(
    probe: Probe,
    mode: Mode,
    device: str,
    emulation: Emulation | None,
    *,
    on_abort: OnAbort = "raise",
    backend: str | None = None,
) -> ModeResult:
    """Run a probe's trigger in one grad mode, in this process; whatever it raises becomes a status."""
    from mpsdiag.emulation.mode import emulated
    from mpsdiag.probes.lab import Lab, one_thread

    if probe.trigger is None:
        return ModeResult("skip", reason=probe.never_run or "nothing to run")
    checks: list[Check] = []
    try:
        with one_thread(), emulated(emulation, on_abort):
            for check in probe.trigger(Lab(device, emulation, mode, backend=backend)):
                checks.append(check)  # noqa: PERF402 - what was judged before an exception is kept
    except Skip as reason:
        return ModeResult(_status(checks), tuple(checks), str(reason))
    except EmulatedAbort as abort:
        checks.append(Check(first_line(abort, 300), ok=False, seen=ABORTS, mode=mode))
    except Exception as problem:  # noqa: BLE001 - a probe that breaks is a status, never a crash of the tool
        return ModeResult("error", tuple(checks), f"{type(problem).__name__}: {first_line(problem, 300)}")
    return ModeResult(_status(checks), tuple(checks))


def conclude(
    probe: Probe, results: Mapping[Mode, ModeResult], seconds: float, *, backend: str | None = None
) -> Finding:
    """Combine the outcomes of the grad modes; a skip is never a pass."""
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
        backend=backend,
    )


def run_probe(
    probe_id: str, *, device: str, emulation: Emulation | None = None, isolate: bool | None = None
) -> Finding:
    """Run one probe in both grad modes."""
    return _run_all([find(probe_id)], device, emulation, isolate=isolate)[0]


def run_level(
    level: int, device: str, emulation: Emulation | None = None, progress: Callable[[str], None] = lambda _: None
) -> list[Finding]:
    """Run every probe of this level and below, in the order of their ids.

    Level 3 adds the sweep, whose failures go to the probes that explain them, and, on devices with a choice of
    attention backends, fully masked rows and the sweep once more on each. On a real Apple GPU it runs in children.
    """
    chosen = [probe for probe in CATALOGUE.values() if probe.level <= level]
    if level < 3:
        return _run_all(chosen, device, emulation, progress=progress)
    isolate = True if kind_of(device) == "mps" else None
    *findings, sweep = _run_all([*chosen, SWEEP_PROBE], device, emulation, isolate=isolate, progress=progress)
    findings = attribute(sweep, findings)
    if emulation is None:
        for backend in BACKENDS.get(kind_of(device), ()):
            findings += run_backend(backend, device)
    return findings


def run_backend(backend: str, device: str) -> list[Finding]:
    """Run fully masked rows and the sweep with one of torch's attention backends forced; each finding names it."""
    *findings, sweep = _run_all([CATALOGUE["SDPA001"], SWEEP_PROBE], device, None, backend=backend)
    return attribute(sweep, findings)


def _run_all(
    probes: Sequence[Probe],
    device: str,
    emulation: Emulation | None,
    *,
    isolate: bool | None = None,
    backend: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Finding]:
    """Run probes; those that want a child share one as long as it lives."""
    real = kind_of(device) == "mps"
    apart = [
        probe
        for probe in probes
        # On a real Apple GPU whatever is more than the everyday call may take the process down.
        if probe.trigger and (probe.isolated or (real and probe.level >= 3) if isolate is None else isolate)
    ]
    jobs: list[Job] = [(probe.id, mode) for probe in apart for mode in MODES]
    answers = run_isolated(jobs, device, emulation) if jobs else {}
    findings = []
    for number, probe in enumerate(probes, start=1):
        progress(f"probing the attention kernel, {number} of {len(probes)}")
        if probe in apart:
            results = {mode: answers[probe.id, mode][0] for mode in MODES}
            seconds = sum(answers[probe.id, mode][1] for mode in MODES)
        else:
            begin = time.perf_counter()
            results = {mode: run_mode(probe, mode, device, emulation, backend=backend) for mode in MODES}
            seconds = time.perf_counter() - begin
        findings.append(conclude(probe, results, seconds, backend=backend))
    return findings


def runnable(probe_id: str) -> Probe:
    """The probe of that id, or the sweep."""
    return SWEEP_PROBE if probe_id == SWEEP else find(probe_id)


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
    detail = f"{len(checks)} of {len(checks)} outputs correct"
    if failed:
        modes = " and ".join(dict.fromkeys(check.mode for check in failed))
        one = failed[0]
        worst = f" (error {one.error:.3g}, allowed {one.bound:.3g})" if one.error is not None else ""
        detail = f"{len(failed)} of {len(checks)} outputs wrong, in {modes}; {one.name}: {one.seen}{worst}"
    return f"{detail}; {probe.note(checks)}" if probe.note else detail


def minor_of(release: str) -> str:
    """Shorten a torch version to a release of the tables: `2.8.1` is `2.8`, `2.17.0` counts as the newest known."""
    major, minor, *_ = release.split(".")
    newest = int(RELEASES[-1].partition(".")[2])
    return f"{major}.{min(int(minor), newest)}" if major == "2" else release


def predicted(release: str, macos: int = 15) -> tuple[str, ...]:
    """List the ids of the probes that should fail on the MPS of this torch release and macOS."""
    return tuple(probe.id for probe in CATALOGUE.values() if strikes(probe, release, macos))


def strikes(probe: Probe, release: str, macos: int = 15, mode: Mode | None = None) -> bool:
    """Whether a probe should fail on this release and macOS, in one grad mode or in any."""
    minor = minor_of(release)
    first = max(probe.first_macos or 0, probe.reached_from_macos or 0)
    if not first <= macos <= (probe.last_macos or macos):
        return False
    in_training = minor in (probe.training_releases or (probe.releases if probe.hits != "evaluation" else ()))
    in_evaluation = minor in probe.releases and probe.hits != "training"
    return {"training": in_training, "evaluation": in_evaluation, None: in_training or in_evaluation}[mode]


def surprises(findings: Iterable[Finding], release: str, macos: int = 15, *, where: str = "MPS") -> list[str]:
    """Sentences about results that differ from the prediction; skips and errors do not count."""
    sentences = []
    for finding in findings:
        probe = CATALOGUE.get(finding.id)
        if probe is None:
            continue
        for mode in MODES:
            status = getattr(finding, mode)
            expected = strikes(probe, release, macos, mode)
            if status not in {"pass", "fail"} or expected == (status == "fail"):
                continue
            should = probe.bad if expected else probe.good
            seen = finding.seen if status == "fail" else probe.good
            sentences.append(
                f"{probe.id} ({probe.title}), in {mode}: torch {minor_of(release)} on {where} should give {should} "
                f"here, but this machine gives {seen}."
            )
    return sentences
