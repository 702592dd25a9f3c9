"""What `mpsdiag trace` found, laid out as sections: the cause, the place, the evidence, what to do."""

import math
from collections.abc import Iterable
from typing import Any

from mpsdiag.reporting.check import advice_blocks, environment, number, stock_prints, subject
from mpsdiag.reporting.layout import blocks
from mpsdiag.tracing.origin import Origin
from mpsdiag.tracing.run import TraceReport

# Causes whose name says less than these words.
NAMES = {
    "overflow": "a value too large for its dtype",
    "dead_rows": "fully masked rows",
    "no_labels": "no label counts",
    "bad_mask": "a mask with values that no mask may have",
    "wrong_device": "the device computes wrongly",
    "divergence": "training diverges",
    "hidden_by_filter": "a loss that only looks finite",
    "derivative": "a derivative that is not finite",
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
    """Lay the Origin out that `mpsdiag.trace` returned."""
    headline = f"{_named(origin.cause)}: {origin.place}"
    return blocks.document("mpsdiag trace", headline, "affected", _origins(origin))


def _origins(origin: Origin) -> Iterable[blocks.Part]:
    yield "origin", "Where the first non-finite value appears", origin_blocks(origin)
    for count, other in enumerate(origin.also, 1):
        yield f"also-{count}", f"Also: {other.cause}", origin_blocks(other)


def headline(report: TraceReport) -> str:
    """One line: what it is, and where; an emulation is always called one."""
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
    """What is known of an Origin: a sentence, the place, what to do."""
    yield blocks.Prose(f"{origin.summary}.")
    yield blocks.pairs("where", list(_place(origin)))
    yield from advice_blocks([origin.remedy], "What to do: ")


def _place(origin: Origin) -> Iterable[tuple[str, str]]:
    """Name and value of where it appears, the most telling evidence first."""
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
        places = "; ".join(f"{count} at {name}" for name, count in evidence["where"].items())
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
