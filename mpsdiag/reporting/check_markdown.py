"""A Diagnosis as the Markdown block to paste into an issue: verdict, evidence, fixes, environment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mpsdiag.checking.diagnosis import Diagnosis
from mpsdiag.environment import to_markdown
from mpsdiag.reporting.check_words import cause, fix_mark, headline, number, place, predicted, subtitle
from mpsdiag.reporting.formats.escape import md_cell


def render(diagnosis: Diagnosis) -> str:
    """The whole block; every cell is escaped."""
    lines = [f"**mpsdiag check: {md_cell(headline(diagnosis))}**", "", md_cell(subtitle(diagnosis)), ""]
    if not diagnosis.probes:
        lines += [f"- Why: {md_cell(diagnosis.reason, 1000)}"]
    lines += [f"- Kernel: {diagnosis.kernel.verdict}. {md_cell(diagnosis.kernel.reason, 1000)}"]
    if diagnosis.scenario is not None:
        lines += [f"- Scenario: {diagnosis.scenario.verdict}. {md_cell(diagnosis.scenario.reason, 1000)}"]
    lines += [f"- Note: {md_cell(note, 1000)}." for note in diagnosis.notes]
    lines += [f"- Differs from its release: {md_cell(text, 1000)}" for text in diagnosis.differs_from_release]
    if diagnosis.probes:
        lines += _table(
            ("probe", "training", "evaluation", "what was seen"),
            ((f"{p.id} {p.title}", p.training, p.evaluation, p.detail) for p in diagnosis.probes),
        )
    if diagnosis.scenario is not None:
        s = diagnosis.scenario
        lines += _table(
            ("scenario", "value"),
            (
                ("model, data", f"{s.model}, {s.dataset}, {s.dtype}, padding {s.padding_side}"),
                ("train_loss", number(s.train_loss)),
                ("eval_loss", number(s.eval_loss)),
                ("stock transformers 5.23 prints", number(s.stock_eval_loss)),
                ("non-finite batches", f"{s.nonfinite_batches} of {s.eval_batches}"),
                ("fully masked rows at F.sdpa", str(s.dead_rows)),
                ("predicted from config and data", predicted(s)),
                ("first non-finite value", place(s.first_nonfinite)),
                *((("cause", why),) if (why := cause(s)) else ()),
            ),
        )
    if diagnosis.fixes:
        lines += _table(
            ("fix", "resolves", "eval_loss", "why"),
            ((f"{f.name} ({f.kind})", fix_mark(f), number(f.eval_loss), f.why) for f in diagnosis.fixes),
        )
    if diagnosis.not_probed:
        names = ", ".join(f"{defect.id} {defect.title}" for defect in diagnosis.not_probed)
        lines += ["", f"Also known for this torch release, not probed: {md_cell(names, 4000)}"]
    return "\n".join([*lines, "", to_markdown(diagnosis.environment)])


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(md_cell(cell, 400) for cell in row)} |" for row in rows]
    return lines
