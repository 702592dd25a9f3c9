"""The findings of `mpsdiag check`, laid out as sections for every format: the answer first, then the evidence."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mpsdiag.checking.diagnosis import Diagnosis, FixResult, ProbeResult, ScenarioResult, invariance_verdict
from mpsdiag.environment import Environment, facts
from mpsdiag.findings import Advice, ArrangementResult, Invariance
from mpsdiag.probes.known import CATALOGUE
from mpsdiag.reporting.layout import blocks
from mpsdiag.reporting.story.figures import Tone

if TYPE_CHECKING:
    from mpsdiag.scenario.scenario import FirstNonfinite
    from mpsdiag.tracing.run import TraceReport

_TONES: dict[str, Tone] = {
    "affected": "bad",
    "not_affected": "good",
    "undecided": "moved",
    "pass": "good",
    "fail": "bad",
    "skip": "muted",
    "error": "moved",
}


def document(diagnosis: Diagnosis) -> blocks.Document:
    """Lay a diagnosis out."""
    differs: list[blocks.Block] = []
    if diagnosis.differs_from_release:
        ask = blocks.Prose("Please report it: mpsdiag check --markdown prints a block to paste into an issue.")
        differs = [blocks.Points(tuple(diagnosis.differs_from_release)), ask]
    whys = [blocks.Points(tuple(f"{fix.name}: {fix.why}" for fix in diagnosis.fixes))]
    probes = [blocks.table("", ("probe", "training", "evaluation", "what was seen"), diagnosis.probes, _probe_row)]
    parts: tuple[blocks.Part, ...] = (
        ("answer", "", _answer(diagnosis)),
        ("fixes", "Which fix resolves it", _fixes(diagnosis.fixes)),
        ("advice", "What to do", advice_blocks(diagnosis.advice)),
        ("differs", "Differs from the known behaviour of this release", differs),
        ("probes", "Probes", probes if diagnosis.probes else ()),
        ("scenario", "Scenario", _scenario(diagnosis, diagnosis.scenario) if diagnosis.scenario else ()),
        ("invariance", "Padding invariance", invariance(diagnosis.invariance)),
        ("why", "Why a fix resolves it, or does not", whys),
        ("known", f"Known for this release, not probed at level {diagnosis.level}", _known(diagnosis)),
        environment(diagnosis.environment),
    )
    return blocks.document("mpsdiag check", headline(diagnosis), diagnosis.verdict, parts)


def environment(found: Environment) -> blocks.Part:
    """The section on where it ran."""
    return "environment", "Environment", [blocks.facts("Environment (mpsdiag env)", facts(found))]


def headline(diagnosis: Diagnosis) -> str:
    """One line: the verdict and its subject."""
    if _anything_ran(diagnosis) or diagnosis.emulated is not None:
        what = subject(diagnosis)
    else:
        torch = f"torch {diagnosis.environment.versions.get('torch')}"
        what = f"{diagnosis.device}, on which nothing ran ({torch})"
    return f"{diagnosis.verdict.replace('_', ' ')}: {what}"


def subject(found: Diagnosis | TraceReport) -> str:
    """What was examined; an emulation is always named as such."""
    if found.emulated is not None:
        return f"EMULATED MPS of torch {found.emulated.release} on macOS {found.emulated.macos} (on the CPU)"
    return f"{found.device} with torch {found.environment.versions.get('torch')}"


def _anything_ran(diagnosis: Diagnosis) -> bool:
    return diagnosis.scenario is not None or any(probe.status != "skip" for probe in diagnosis.probes)


def _subtitle(diagnosis: Diagnosis) -> str:
    """Whether the numbers are measured or emulated, and the transformers release."""
    transformers = f"transformers {diagnosis.environment.versions.get('transformers')}"
    if not _anything_ran(diagnosis):
        return f"Nothing was measured: no probe ran. {transformers}."
    if diagnosis.emulated is not None:
        return f"Nothing here was measured on MPS: a model of its kernels ran on the CPU. {transformers}."
    return f"Measured on this machine's {diagnosis.device}. {transformers}."


def _answer(diagnosis: Diagnosis) -> Iterable[blocks.Block]:
    yield blocks.Prose(_subtitle(diagnosis), "muted")
    if diagnosis.probes:
        yield _judged("Kernel", diagnosis.kernel.verdict, diagnosis.kernel.reason)
    else:
        yield blocks.Prose(f"Why: {diagnosis.reason}.")
    if diagnosis.scenario is not None:
        yield _judged("Scenario", diagnosis.scenario.verdict, diagnosis.scenario.reason)
    if diagnosis.invariance is not None:
        judged = invariance_verdict(diagnosis.invariance)
        yield _judged("Padding invariance", judged.verdict, judged.reason)
    for note in diagnosis.notes:
        yield blocks.Prose(f"Note: {note}.")


def _judged(name: str, verdict: str, reason: str) -> blocks.Prose:
    return blocks.Prose(f"{name}: {verdict.replace('_', ' ')} ({reason})", _TONES[verdict])


def _fixes(fixes: list[FixResult]) -> Iterable[blocks.Block]:
    heads = blocks.columns("fix", "resolves it", "eval_loss", numbers=["eval_loss"])
    if fixes:
        yield blocks.table("", heads, fixes, _fix_row)


def _fix_row(fix: FixResult) -> tuple[blocks.Cell, ...]:
    resolves = blocks.Entry(resolving(fix), "good" if fix.resolves else "bad")
    loss = blocks.Entry(number(fix.eval_loss), sort=fix.eval_loss if fix.resolves else math.inf)
    return f"{fix.name} ({fix.kind})", resolves, loss


def resolving(fix: FixResult) -> str:
    """Whether a fix resolves it, in words."""
    return "no" if not fix.resolves else "yes, exact" if fix.exact else "yes"


def invariance(found: Invariance | None) -> Iterable[blocks.Block]:
    """Each arrangement against the sequences alone, the fixes tried, and the labels predicted at padding."""
    if found is None or not found.arrangements:
        return
    heads = ("arrangement", "largest difference", "allowed", "holds")
    title = "Against each sequence alone, in float64 on the CPU"
    yield blocks.table(title, heads, found.arrangements, _arrangement_row)
    if found.fixes:
        tried = "; ".join(f"{fix.name} {'restores it' if fix.restores else 'does not'}" for fix in found.fixes)
        yield blocks.Prose(f"Fixes tried: {tried}.")
    if found.first_label is not None:
        yield blocks.Prose(f"First label: {found.first_label.sentence}.")


def _arrangement_row(result: ArrangementResult) -> tuple[blocks.Cell, ...]:
    holds = blocks.Entry("no (not in use)", "muted")
    if result.holds or result.counts:
        holds = blocks.Entry("yes", "good") if result.holds else blocks.Entry("no", "bad")
    return result.name, number(result.max_abs_diff), number(result.allowed), holds


def advice_blocks(advice: Iterable[Advice], before: str = "") -> Iterable[blocks.Block]:
    """What to do, with the commands that do it."""
    for one in advice:
        yield blocks.Points((before + one.text,))
        yield blocks.Log("", "\n".join(one.commands))


def _probe_row(probe: ProbeResult) -> tuple[blocks.Cell, ...]:
    training, evaluation = (blocks.Entry(word, _TONES[word]) for word in (probe.training, probe.evaluation))
    return f"{probe.id} {probe.title}", training, evaluation, probe.detail


def stock_prints(found: Diagnosis | TraceReport) -> str:
    """Name the eval_loss that the transformers of a document prints by default."""
    return f"transformers {found.environment.versions.get('transformers')} prints"


def _scenario(diagnosis: Diagnosis, scenario: ScenarioResult) -> Iterable[blocks.Block]:
    named = f"{scenario.model}, {scenario.dataset}, {scenario.dtype}, padding {scenario.padding_side}"
    rows = [
        ("model, data", named),
        ("train_loss", number(scenario.train_loss)),
        ("eval_loss", number(scenario.eval_loss)),
        (stock_prints(diagnosis), number(scenario.stock_eval_loss)),
        ("non-finite batches", f"{scenario.nonfinite_batches} of {scenario.eval_batches}"),
        ("fully masked rows at F.sdpa", f"{scenario.dead_rows} in {scenario.eval_batches} batches"),
        ("predicted from config and data", predicted(scenario)),
        ("first non-finite value", _place(scenario.first_nonfinite)),
    ]
    if scenario.cause is not None:
        also = f"; also {', '.join(scenario.cause.also)}" if scenario.cause.also else ""
        rows.append(("cause", f"{scenario.cause.cause}: {scenario.cause.summary}{also}"))
    yield blocks.pairs("scenario", rows)
    if scenario.exposure is not None:
        yield blocks.Points(tuple(scenario.exposure.notes))


def _place(first: FirstNonfinite | None) -> str:
    if first is None:
        return "none"
    layer = "outside the layers" if first.layer is None else f"layer {first.layer}"
    return f"batch {first.batch}, {layer}, {first.module or 'model'}, {first.operation}"


def predicted(scenario: ScenarioResult) -> str:
    """Fully masked rows as predicted from config and data, and their origin."""
    exposure = scenario.exposure
    if exposure is None:
        return "-"
    if not exposure.rows:
        return "0" if exposure.causal else "0 (not a causal model: each query sees every real token)"
    why = "; ".join(f"{count} from {reason}" for reason, count in exposure.reasons.items())
    kept = "" if exposure.reach_sdpa else f"; attention '{scenario.attention}' passes none to F.sdpa"
    return f"{exposure.rows}, in {exposure.sequences} of {exposure.of_sequences} sequences ({why}{kept})"


def _known(diagnosis: Diagnosis) -> Iterable[blocks.Block]:
    if diagnosis.not_probed:
        yield blocks.Points(tuple(f"{defect.id} {defect.title}" for defect in diagnosis.not_probed))
        first = diagnosis.not_probed[0].id
        yield blocks.Prose(f"Probe them all: mpsdiag check --level 3. One: mpsdiag check {first}")


def number(value: float | None) -> str:
    """A loss or a difference, or a word in place of a number."""
    if value is None:
        return "-"
    return f"{value:.6g}" if math.isfinite(value) else str(value)


def catalogue() -> blocks.Document:
    """Lay out the catalogue of probes for `mpsdiag check --list`, without loading torch."""
    rows = [(one.id, str(one.level), one.hits, one.where, one.title) for one in CATALOGUE.values()]
    table = blocks.table("", ("probe", "level", "hits", "torch on MPS", "what it is"), rows, iter)
    return blocks.document("mpsdiag check --list", "The probes", "", [("probes", "", [table])])


def catalogue_document() -> dict[str, object]:
    """The catalogue of probes as plain data."""
    plain = ("id", "title", "symptom", "level", "hits", "releases", "fixed", "isolated", "upstream")
    rows = [
        {
            **{name: getattr(probe, name) for name in plain},
            "remedy": {"text": probe.remedy.text, "commands": probe.remedy.commands},
        }
        for probe in CATALOGUE.values()
    ]
    return {"schema": 1, "probes": rows}
