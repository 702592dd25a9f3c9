"""What `mpsdiag trace`, `mpsdiag run --trace` and `mpsdiag.watch` found, laid out as sections.

Of a trace: the cause, the place, the evidence, what to do. Of a script: the findings first, then the counts.
"""

import linecache
import math
from collections.abc import Iterable
from typing import Any

from mpsdiag.reporting.check import advice_blocks, environment, invariance, number, stock_prints, subject
from mpsdiag.reporting.layout import blocks
from mpsdiag.tracing.origin import Origin
from mpsdiag.tracing.process.watched import ScriptCheck, ScriptFinding, ScriptReport
from mpsdiag.tracing.run import TraceReport
from mpsdiag.words import count

# Clearer words for some causes.
NAMES = {
    "overflow": "a value too large for its dtype",
    "dead_rows": "fully masked rows",
    "no_labels": "no label counts",
    "bad_mask": "a mask with wrong values",
    "wrong_device": "the device computes wrong values",
    "divergence": "training diverges",
    "hidden_by_filter": "a loss that only looks finite",
    "derivative": "a non-finite derivative",
    "unknown": "no known cause",
}


def document(report: TraceReport) -> blocks.Document:
    """Lay a trace out."""
    origin = report.origin
    notes = (blocks.Points(tuple(f"{note}." for note in report.notes)), blocks.Prose(report.repro_note or ""))
    parts: list[blocks.Part] = [("measured", "", _measured(report))]
    if origin is not None:
        parts += _origins(origin)
    parts += [("notes", "Notes", notes), environment(report.environment)]
    word = "not_affected" if origin is None else "affected"
    return blocks.document("mpsdiag trace", headline(report), word, parts)


def origin_document(origin: Origin) -> blocks.Document:
    """Lay out the Origin that `mpsdiag.trace` returned."""
    headline = f"{_named(origin.cause)}: {origin.place}"
    return blocks.document("mpsdiag trace", headline, "affected", _origins(origin))


def _origins(origin: Origin) -> Iterable[blocks.Part]:
    yield "origin", "Where the first non-finite value appears", origin_blocks(origin)
    for place, other in enumerate(origin.also, 1):
        yield f"also-{place}", f"Also: {other.cause}", origin_blocks(other)


def headline(report: TraceReport) -> str:
    """One line: the cause and its place; an emulation is always named as such."""
    if report.origin is None:
        return f"all finite: {subject(report)}"
    return f"{_named(report.origin.cause)}, on {subject(report)}"


def _named(cause: str) -> str:
    return f"{cause}: {NAMES.get(cause, cause.replace('_', ' '))}"


def _measured(report: TraceReport) -> Iterable[blocks.Block]:
    case = report.case
    what = case.get("recorded") or case.get("batch") or case.get("dataset")
    ran = f"{report.mode.capitalize()} of {case['model']} on {what}, {case['dtype']}."
    where = f"Measured on this machine's {report.device}."
    if report.emulated is not None:
        where = "Nothing here was measured on MPS: a model of its kernels ran on the CPU."
    yield blocks.Prose(f"{where} {ran}", "muted")
    if report.mode == "training":
        rows = [("training steps", str(len(report.losses))), ("losses", _series(report.losses))]
        yield blocks.pairs("measured", [*rows, ("gradient norms", _series(report.grad_norms))])
        return
    rows = [("bad batches", f"{len(report.bad_batches)} of {case['batches']}")]
    if report.eval_loss is not None:
        if not math.isfinite(report.eval_loss):
            rows.insert(0, (stock_prints(report), number(report.stock_eval_loss)))
        rows.insert(0, ("eval_loss", number(report.eval_loss)))
    yield blocks.pairs("measured", rows)


def origin_blocks(origin: Origin) -> Iterable[blocks.Block]:
    """An Origin: a sentence, the place, what to do."""
    yield blocks.Prose(f"{origin.summary}.")
    yield blocks.pairs("where", list(_place(origin)))
    yield from advice_blocks([origin.remedy], "What to do: ")


def _place(origin: Origin) -> Iterable[tuple[str, str]]:
    """The place by name and value, the most important evidence first."""
    yield "layer", "outside the layers" if origin.layer is None else str(origin.layer)
    yield "module", origin.module or "the model itself"
    yield "operation", origin.operation + ("" if origin.phase == "forward" else f" ({origin.phase})")
    evidence = origin.evidence
    if (output := evidence.get("output")) is not None:
        bad = output["non_finite"]
        kept = "".join(f"; {name} {bad[name]}" for name in ("sequences", "heads", "positions") if name in bad)
        yield "not finite", f"{bad['values']} of {bad['of']} values{kept}"
    for fact in evidence.get("inputs", ()):
        yield f"input {fact['name']}", _tensor(fact)
    if evidence.get("where"):
        places = "; ".join(f"{rows} at {name}" for name, rows in evidence["where"].items())
        yield "fully masked rows in this batch", places
    for fact in evidence.get("weights", ()):
        yield f"weight {fact['name']}", _tensor(fact)
    if evidence.get("spread"):
        steps = ", ".join(f"{step['layer']}: {step['positions']}" for step in evidence["spread"])
        yield "bad positions after layer", f"{steps} (of {evidence['spread'][0]['of']})"


def _tensor(fact: dict[str, Any]) -> str:
    parts = [f"{fact['dtype']} {tuple(fact['shape'])}"]
    if "min" in fact:
        parts.append(f"{fact['min']:.4g} to {fact['max']:.4g}")
    if "true" in fact:
        parts.append(f"{fact['true']} of {fact['of']} true")
    parts += [f"{fact[key]} {key}" for key in ("nan", "inf", "-inf") if key in fact]
    return ", ".join(parts)


def _series(values: list[float]) -> str:
    shown = [f"{value:.4g}" for value in values]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:3], "...", *shown[-4:]])


def script_document(report: ScriptReport) -> blocks.Document:
    """Lay out a report."""
    parts: list[blocks.Part] = [
        (f"finding-{place}", f"Finding {place}: {finding.cause}", _finding(finding))
        for place, finding in enumerate(report.findings, 1)
    ]
    if report.check is not None:
        parts.insert(0, ("check", "The script's model and first batches", _script_check(report.check)))
        if report.check.invariance is not None:
            parts.insert(1, ("invariance", "Padding invariance", invariance(report.check.invariance)))
    parts.append(("watched", "What was watched", _watched(report)))
    if report.environment is not None:
        parts.append(environment(report.environment))
    bad = report.findings or (report.check is not None and report.check.affected)
    verdict = "affected" if bad else "not_affected" if report.watched.forwards else "undecided"
    return blocks.document("mpsdiag run --trace", script_headline(report), verdict, parts)


def script_headline(report: ScriptReport) -> str:
    """One line: the first finding, or that nothing was found if something was watched."""
    where = ""
    if report.emulated is not None:
        where = f" (emulated MPS of torch {report.emulated.release} on macOS {report.emulated.macos})"
    if report.check is not None and (report.check.affected or not report.findings):
        answer = "affected" if report.check.affected else "not affected"
        return f"{answer}: {report.check.model} on {report.check.device}, with this script's own batches"
    if report.findings:
        first = report.findings[0]
        return f"{_title(first)}{where}; {'stopped there' if report.stopped else 'the script continued'}"
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
    """The text of a line of code, given as `file:line`; that of a notebook cell is only known where it ran."""
    file, _, line = place.rpartition(":")
    return linecache.getline(file, int(line)).strip() or "not at hand"


def _script_check(found: ScriptCheck) -> Iterable[blocks.Block]:
    rows = [
        ("batches", f"{found.batches} of {'its first evaluation' if found.evaluation else 'its training'}"),
        ("outputs", "finite" if found.finite else "not finite"),
    ]
    if found.exposure is not None:
        where = ", ".join(f"{rows} at {name}" for name, rows in found.exposure.reasons.items())
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
    models = ", ".join(f"{name} {calls}" for name, calls in seen.models.items())
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
    if seen.unwatched:
        rows.append(("not watched", "; ".join(f"{times:,} times: {why}" for why, times in seen.unwatched.items())))
    if seen.processes > 1:
        rows.append(("processes", f"{seen.processes:,}"))
    if report.script_exit is not None:
        rows.append(("the script's exit code", str(report.script_exit)))
    if report.recorded is not None:
        rows.append(("the bad batch", f"{report.recorded}: mpsdiag trace {report.recorded}"))
    yield blocks.pairs("watched", rows)
