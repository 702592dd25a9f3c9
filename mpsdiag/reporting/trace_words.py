"""The sentences that the terminal and the Markdown form of a trace share."""

from __future__ import annotations

import math
from typing import Any

from mpsdiag.reporting.check_words import number
from mpsdiag.tracing.origin import Origin
from mpsdiag.tracing.run import Report

NAMES = {
    "dead_rows": "fully masked attention rows",
    "overflow": "overflow",
    "no_labels": "no label counts",
    "bad_weights": "bad weights",
    "bad_inputs": "bad inputs",
    "bad_mask": "a mask that is not what it says",
    "wrong_device": "the device computes wrongly",
    "divergence": "training diverges",
    "hidden_by_filter": "a loss that only looks finite",
    "unknown": "unknown",
}


def headline(report: Report) -> str:
    """One line: what it is, and where."""
    if report.origin is None:
        return f"all finite: {subject(report)}"
    return f"{report.origin.cause}: {NAMES[report.origin.cause]}, on {subject(report)}"


def subject(report: Report) -> str:
    """What was looked at; an emulation is always called one."""
    if report.emulated is not None:
        return (
            f"EMULATED MPS of torch {report.emulated.release} on macOS {report.emulated.macos} (on the CPU)"
        )
    return f"{report.device} with torch {report.environment.versions.get('torch')}"


def subtitle(report: Report) -> str:
    """Say what ran, and whether on the real device."""
    case = report.case
    what = case.get("recorded") or case.get("batch") or case.get("dataset")
    ran = f"{report.mode} of {case['model']} on {what}, {case['dtype']}"
    if report.emulated is not None:
        return f"Nothing here was measured on MPS: a model of its kernels ran on the CPU. {ran}."
    return f"Measured on this machine's {report.device}. {ran}."


def rows(report: Report) -> list[tuple[str, str]]:
    """Name and value of what was measured."""
    found: list[tuple[str, str]] = []
    if report.mode == "training":
        found.append(("training steps", str(len(report.losses))))
        found.append(("losses", _series(report.losses)))
        found.append(("gradient norms", _series(report.grad_norms)))
    elif report.eval_loss is not None:
        found.append(("eval_loss", number(report.eval_loss)))
        if not math.isfinite(report.eval_loss):
            found.append(("stock transformers 5.23 prints", number(report.stock_eval_loss)))
        found.append(("bad batches", f"{len(report.bad_batches)} of {report.case['batches']}"))
    else:
        found.append(("bad batches", f"{len(report.bad_batches)} of {report.case['batches']}"))
    return found


def place_rows(origin: Origin) -> list[tuple[str, str]]:
    """Name and value of where it comes from, the most telling evidence first."""
    found = [
        ("layer", "outside the layers" if origin.layer is None else str(origin.layer)),
        ("module", origin.module or "the model itself"),
        ("operation", origin.operation + ("" if origin.phase == "forward" else f" ({origin.phase})")),
    ]
    evidence = origin.evidence
    output = evidence.get("output")
    if output is not None:
        bad = output["non_finite"]
        told = f"{bad['values']} of {bad['of']} values"
        for name in ("sequences", "heads", "positions"):
            if name in bad:
                told += f"; {name} {bad[name]}"
        found.append(("not finite", told))
    found += [(f"input {fact['name']}", _fact(fact)) for fact in evidence.get("inputs", ())]
    if evidence.get("where"):
        found.append(
            (
                "fully masked rows",
                "; ".join(f"{count} at {name}" for name, count in evidence["where"].items()),
            )
        )
    found += [(f"weight {fact['name']}", _fact(fact)) for fact in evidence.get("weights", ())]
    if evidence.get("spread"):
        steps = ", ".join(f"{step['layer']}: {step['positions']}" for step in evidence["spread"])
        found.append(("bad positions after layer", f"{steps} (of {evidence['spread'][0]['of']})"))
    return found


def _fact(fact: dict[str, Any]) -> str:
    told = f"{fact['dtype']} {tuple(fact['shape'])}"
    if "min" in fact:
        told += f", {fact['min']:.4g} to {fact['max']:.4g}"
    if "true" in fact:
        told += f", {fact['true']} of {fact['of']} true"
    for key in ("nan", "inf", "-inf"):
        if key in fact:
            told += f", {fact[key]} {key}"
    return told


def _series(values: list[float]) -> str:
    shown = [f"{value:.4g}" for value in values]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:3], "...", *shown[-4:]])
