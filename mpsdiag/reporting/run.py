"""What `mpsdiag run --trace` and `mpsdiag.watch` saw, laid out as sections: the findings first, then the counts."""

import linecache
from collections.abc import Iterable

from mpsdiag.reporting.check import environment, invariance
from mpsdiag.reporting.layout import blocks
from mpsdiag.reporting.trace import NAMES, origin_blocks
from mpsdiag.tracing.process.watched import ScriptCheck, ScriptFinding, ScriptReport
from mpsdiag.words import count


def script_document(report: ScriptReport) -> blocks.Document:
    """Lay a report out."""
    parts: list[blocks.Part] = [
        (f"finding-{number}", f"Finding {number}: {finding.cause}", _finding(finding))
        for number, finding in enumerate(report.findings, 1)
    ]
    if report.check is not None:
        parts.insert(0, ("check", "The script's model and first batches", _check(report.check)))
        if report.check.invariance is not None:
            parts.insert(1, ("invariance", "Padding invariance", invariance(report.check.invariance)))
    parts.append(("watched", "What was watched", _watched(report)))
    if report.environment is not None:
        parts.append(environment(report.environment))
    bad = report.findings or (report.check is not None and report.check.affected)
    verdict = "affected" if bad else "not_affected" if report.watched.forwards else "undecided"
    return blocks.document("mpsdiag run --trace", headline(report), verdict, parts)


def headline(report: ScriptReport) -> str:
    """One line: what was found first, or that nothing was, where something was watched."""
    where = ""
    if report.emulated is not None:
        where = f" (emulated MPS of torch {report.emulated.release} on macOS {report.emulated.macos})"
    if report.check is not None:
        answer = "affected" if report.check.affected else "not affected"
        return f"{answer}: {report.check.model} on {report.check.device}, with this script's own batches"
    if report.findings:
        first = report.findings[0]
        return f"{_title(first)}{where}; {'stopped there' if report.stopped else 'the script went on'}"
    if not report.watched.forwards:
        return "nothing was watched: no torch module was called"
    return f"nothing found in {count(report.watched.forwards, 'forward')}{where}"


def _title(finding: ScriptFinding) -> str:
    named = NAMES.get(finding.cause, finding.cause.replace("_", " "))
    way = finding.user_code
    inner = f", which leads to {way[-1]}" if way[1:] else ""
    return f"{finding.cause}: {named}{f' at {way[0]}{inner}' if way else ''}"


def _finding(finding: ScriptFinding) -> Iterable[blocks.Block]:
    yield from origin_blocks(finding)
    if finding.user_code:
        rows = [(place, _source(place)) for place in finding.user_code]
        yield blocks.table("", ("your code, outermost first", "text"), rows, iter)
    seen = [("seen", count(finding.count, "time")), ("first after", count(finding.step, "optimizer step"))]
    yield blocks.pairs("when", seen)
    for also in finding.also:
        yield blocks.Prose(f"Also {also.cause}: {also.summary}.")


def _source(place: str) -> str:
    """The text of a line of code, given as `file:line`; that of a notebook's cell is known where it ran."""
    file, _, number = place.rpartition(":")
    return linecache.getline(file, int(number)).strip() or "not at hand"


def _check(found: ScriptCheck) -> Iterable[blocks.Block]:
    rows = [
        ("batches", f"{found.batches} of {'its first evaluation' if found.evaluation else 'its training'}"),
        ("outputs", "finite" if found.finite else "not finite"),
    ]
    if found.exposure is not None:
        where = ", ".join(f"{count} at {name}" for name, count in found.exposure.reasons.items())
        rows.append(("fully masked rows, predicted", f"{found.exposure.rows}{f': {where}' if where else ''}"))
    if found.invariance is not None:
        rows.append(("padding", found.invariance.reason))
    rows += [(f"with {name}", "right" if right else "not right") for name, right in found.fixes.items()]
    yield blocks.pairs("check", rows)
    if found.affected and found.resolved_by:
        yield blocks.Log("", f"mpsdiag run --fix {found.resolved_by[-1]} your_script.py")
    yield blocks.Points(tuple(f"{note}." for note in found.notes))


def _watched(report: ScriptReport) -> Iterable[blocks.Block]:
    seen = report.watched
    models = ", ".join(f"{name} {number}" for name, number in seen.models.items())
    rows = [
        ("forwards", f"{seen.forwards:,}" + (f" ({models})" if models else "")),
        ("backwards", f"{seen.backwards:,}"),
        ("optimizer steps", f"{seen.steps:,}"),
    ]
    if seen.masked_rows_nan is not None:
        verb = "makes" if seen.masked_rows_nan else "does not make"
        rows.append(("fully masked rows", f"{seen.masked_rows:,}; attention here {verb} them NaN"))
    else:
        rows.append(("fully masked rows", "0"))
    rows.append(("labels that were all -100", f"{seen.unlabelled:,}"))
    rows.append(("losses hidden by transformers' filter", f"{seen.hidden_losses:,}"))
    if seen.skipped_steps:
        rows.append(("steps that GradScaler skipped", f"{seen.skipped_steps:,}: its scale was too large; no finding"))
    if seen.not_repeated:
        rows.append(("calls that could not be run again", f"{seen.not_repeated:,}"))
    if seen.processes > 1:
        rows.append(("processes", f"{seen.processes:,}"))
    if report.script_exit is not None:
        rows.append(("the script's exit code", str(report.script_exit)))
    if report.recorded is not None:
        rows.append(("the bad batch", f"{report.recorded}: mpsdiag trace {report.recorded}"))
    yield blocks.pairs("watched", rows)
