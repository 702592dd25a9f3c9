"""A trace as the Markdown block to paste into an issue: cause, place, evidence, environment."""

from __future__ import annotations

from collections.abc import Iterable

from mpsdiag.environment import to_markdown
from mpsdiag.reporting.formats.escape import md_block, md_cell
from mpsdiag.reporting.trace_words import headline, place_rows, rows, subtitle
from mpsdiag.tracing.origin import Origin
from mpsdiag.tracing.run import Report


def render(report: Report) -> str:
    """The whole block; every cell is escaped."""
    lines = [f"**mpsdiag trace: {md_cell(headline(report))}**", "", md_cell(subtitle(report), 600)]
    lines += _table("measured", rows(report))
    if report.origin is not None:
        lines += _origin(report.origin)
        for other in report.origin.also:
            lines += ["", f"Also, {md_cell(other.cause)}:", *_origin(other)]
    for note in report.notes:
        lines += ["", f"Note: {md_cell(note, 1000)}."]
    if report.repro_note is not None:
        lines += ["", md_cell(report.repro_note, 600)]
    return "\n".join([*lines, "", to_markdown(report.environment)])


def _origin(origin: Origin) -> list[str]:
    lines = ["", f"{md_cell(origin.summary, 1000)}."]
    lines += _table("where", place_rows(origin))
    lines += ["", f"What to do: {md_cell(origin.remedy.text, 1000)}"]
    if origin.remedy.commands:
        lines += ["", md_block("\n".join(origin.remedy.commands))]
    return lines


def _table(title: str, content: Iterable[tuple[str, str]]) -> list[str]:
    lines = ["", f"| {title} | |", "|---|---|"]
    return [*lines, *(f"| {md_cell(name)} | {md_cell(value, 400)} |" for name, value in content)]
