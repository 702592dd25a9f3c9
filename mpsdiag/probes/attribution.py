"""Which known defects account for what the sweep found. Pure functions over findings and checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from mpsdiag.probes.catalogue import CATALOGUE
from mpsdiag.probes.declaration import Finding
from mpsdiag.probes.outcome import Check
from mpsdiag.words import ProbeStatus

EXAMPLES = 20
"""Unexplained failures that a finding lists one by one; the rest is counted."""


def explanation(check: Check, findings: Sequence[Finding]) -> tuple[str, ...]:
    """List the ids of the probes that failed in the same grad mode and whose defect accounts for this failure."""
    if check.at is None:
        return ()
    found = []
    for finding in findings:
        explains = CATALOGUE[finding.id].explains if finding.id in CATALOGUE else None
        status = finding.training if check.mode == "training" else finding.evaluation
        if explains is not None and status == "fail" and explains(check.at):
            found.append(finding.id)
    return tuple(found)


def attribute(sweep: Finding, findings: Sequence[Finding]) -> list[Finding]:
    """Give each failure of the sweep to the failed probes that explain it; the sweep keeps the others.

    Args:
        sweep: The sweep as it was run, with all its failures.
        findings: The catalogue's findings of the same run.

    Returns:
        The catalogue's findings, with what the sweep adds to them, and the sweep: `pass` if nothing is left over.
    """
    explained: Counter[str] = Counter()
    left = []
    for check in sweep.failed:
        ids = explanation(check, findings)
        explained.update(ids)
        if not ids:
            left.append(check)
    told = [
        replace(
            finding, detail=f"{finding.detail}; the sweep shows it in {explained[finding.id]} combinations"
        )
        if explained[finding.id]
        else finding
        for finding in findings
    ]
    return [*told, _what_is_left(sweep, left, explained)]


def _what_is_left(sweep: Finding, left: Sequence[Check], explained: Counter[str]) -> Finding:
    if sweep.status in {"skip", "error"} or not sweep.failed:
        return sweep
    known = ", ".join(f"{name} ({count})" for name, count in sorted(explained.items()))
    detail = f"{len(sweep.failed)} of {sweep.cases} combinations off"
    if not left:
        return replace(
            sweep,
            status="pass",
            training="pass",
            evaluation="pass",
            detail=f"{detail}, all explained by {known}",
            failed=(),
            seen="explained",
        )
    example = left[0]
    return replace(
        sweep,
        training=_left_in("training", sweep, left),
        evaluation=_left_in("evaluation", sweep, left),
        detail=(
            f"{detail}, {len(left)} of them explained by nothing that failed here"
            + (f" (the others by {known})" if known else "")
            + f"; {example.name}: {example.seen}"
        ),
        failed=tuple(left[:EXAMPLES]),
    )


def _left_in(mode: str, sweep: Finding, left: Sequence[Check]) -> ProbeStatus:
    before = sweep.training if mode == "training" else sweep.evaluation
    if before != "fail":
        return before
    return "fail" if any(check.mode == mode for check in left) else "pass"
