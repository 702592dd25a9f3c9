"""A Diagnosis for the terminal: the verdict first, then the evidence, then what to do. Never markup from data."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mpsdiag.checking.diagnosis import Diagnosis, FixResult, ProbeResult, ScenarioResult
from mpsdiag.findings import Advice
from mpsdiag.reporting.check_words import cause, fix_mark, headline, number, place, predicted, subtitle
from mpsdiag.reporting.formats.escape import terminal_text

STYLES = {
    "affected": "bold red",
    "not_affected": "bold green",
    "undecided": "bold yellow",
    "pass": "green",
    "fail": "red",
    "skip": "dim",
    "error": "yellow",
}


def render(diagnosis: Diagnosis) -> RenderableType:
    """Lay out the whole diagnosis."""
    parts: list[RenderableType] = [
        Text(headline(diagnosis), style=STYLES[diagnosis.verdict]),
        Text(subtitle(diagnosis), style="dim"),
        Text(),
    ]
    if not diagnosis.probes:
        parts += [Text(_clean(f"Why: {diagnosis.reason}.")), Text()]
    if diagnosis.probes:
        parts += [_judged("Kernel", diagnosis.kernel.verdict, diagnosis.kernel.reason)]
        parts += [_probes(diagnosis.probes), Text()]
    if diagnosis.scenario is not None:
        parts += [_judged("Scenario", diagnosis.scenario.verdict, diagnosis.scenario.reason)]
        parts += [_scenario(diagnosis.scenario), Text()]
    parts += [Text(_clean(f"Note: {note}.\n")) for note in diagnosis.notes]
    if diagnosis.fixes:
        parts += [Text("Which fix resolves it", style="bold"), _fixes(diagnosis.fixes), Text()]
    if diagnosis.advice:
        parts += [Text("What to do", style="bold"), *[_advice(advice) for advice in diagnosis.advice], Text()]
    if diagnosis.differs_from_release:
        parts += [Text("Not as the table for this torch release says", style="bold yellow")]
        parts += [Text(f"  {_clean(sentence)}") for sentence in diagnosis.differs_from_release]
        parts += [Text("  Please report it: mpsdiag check --markdown prints the block to paste."), Text()]
    if diagnosis.not_probed:
        parts += [
            Text(f"Also known for this torch release, not probed at level {diagnosis.level}", style="bold"),
            *[Text(f"  {defect.id} {_clean(defect.title)}", style="dim") for defect in diagnosis.not_probed],
            Text(
                "  Probe them all: mpsdiag check --level 3. One: mpsdiag check " + diagnosis.not_probed[0].id
            ),
        ]
    return Group(*parts)


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print the diagnosis."""
    console.print(render(diagnosis))


def _judged(name: str, verdict: str, reason: str) -> Text:
    return Text.assemble(
        (f"{name}: ", "bold"), (verdict.replace("_", " "), STYLES[verdict]), f" ({_clean(reason)})"
    )


def _probes(probes: list[ProbeResult]) -> Table:
    table = _table("probe", "training", "evaluation", "what was seen")
    for probe in probes:
        table.add_row(
            Text(f"{probe.id} {probe.title}"),
            Text(probe.training, style=STYLES[probe.training]),
            Text(probe.evaluation, style=STYLES[probe.evaluation]),
            Text(_clean(probe.detail)),
        )
    return table


def _scenario(scenario: ScenarioResult) -> Table:
    table = _table("scenario", "")
    for name, text in (
        (
            "model, data",
            f"{scenario.model}, {scenario.dataset}, {scenario.dtype}, padding {scenario.padding_side}",
        ),
        ("train_loss", number(scenario.train_loss)),
        ("eval_loss", number(scenario.eval_loss)),
        ("stock transformers 5.23 prints", number(scenario.stock_eval_loss)),
        ("non-finite batches", f"{scenario.nonfinite_batches} of {scenario.eval_batches}"),
        ("fully masked rows at F.sdpa", str(scenario.dead_rows)),
        ("predicted from config and data", predicted(scenario)),
        ("first non-finite value", place(scenario.first_nonfinite)),
        *((("cause", why),) if (why := cause(scenario)) else ()),
    ):
        table.add_row(name, Text(_clean(text)))
    for note in scenario.exposure.notes if scenario.exposure else ():
        table.add_row("", Text(_clean(note)))
    return table


def _fixes(fixes: list[FixResult]) -> Table:
    table = _table("fix", "resolves", "eval_loss", "why")
    for fix in fixes:
        table.add_row(
            f"{fix.name} ({fix.kind})",
            Text(fix_mark(fix), style="green" if fix.resolves else "red"),
            number(fix.eval_loss),
            Text(_clean(fix.why)),
        )
    return table


def _advice(advice: Advice) -> Text:
    lines = [f"  - {_clean(advice.text)}", *(f"      {command}" for command in advice.commands)]
    return Text("\n".join(lines))


def _table(*columns: str) -> Table:
    table = Table(
        show_header=any(columns[1:]), header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 2)
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _clean(text: str) -> str:
    return terminal_text(text)
