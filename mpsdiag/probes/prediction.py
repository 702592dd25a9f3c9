"""What the facts predict for a torch release, beside what was seen. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable

from mpsdiag.emulation import RELEASES
from mpsdiag.probes.declaration import MODES, Finding, Mode, Probe
from mpsdiag.probes.known import CATALOGUE


def minor_of(release: str) -> str:
    """Shorten a torch version to a release of the tables: `2.8.1` is `2.8`, `2.17.0` is read as the newest known."""
    major, minor, *_ = release.split(".")
    newest = int(RELEASES[-1].partition(".")[2])
    return f"{major}.{min(int(minor), newest)}" if major == "2" else release


def predicted(release: str, macos: int = 15) -> tuple[str, ...]:
    """List the ids of the probes that should fail on the MPS of this torch release and macOS."""
    return tuple(probe.id for probe in CATALOGUE.values() if strikes(probe, release, macos))


def strikes(probe: Probe, release: str, macos: int = 15, mode: Mode | None = None) -> bool:
    """Say whether a probe should fail on this release and macOS, in one grad mode or in any."""
    minor = minor_of(release)
    first = max(probe.first_macos or 0, probe.reached_from_macos or 0)
    if not first <= macos <= (probe.last_macos or macos):
        return False
    in_training = minor in (probe.training_releases or (probe.releases if probe.hits != "evaluation" else ()))
    in_evaluation = minor in probe.releases and probe.hits != "training"
    return {"training": in_training, "evaluation": in_evaluation, None: in_training or in_evaluation}[mode]


def surprises(findings: Iterable[Finding], release: str, macos: int = 15, *, where: str = "MPS") -> list[str]:
    """Say in sentences where what was seen differs from what the facts predict; skips and errors predict nothing."""
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
                f"here, this machine gives {seen}."
            )
    return sentences
