"""A trace for the terminal: the cause first, then the place, the evidence, what to do. Never markup from data."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mpsdiag.reporting.formats.escape import terminal_text
from mpsdiag.reporting.trace_words import headline, place_rows, rows, subtitle
from mpsdiag.tracing.origin import Origin
from mpsdiag.tracing.run import Report


def render(report: Report) -> RenderableType:
    """Lay out the whole report."""
    style = "bold green" if report.origin is None else "bold red"
    parts: list[RenderableType] = [
        Text(terminal_text(headline(report)), style=style),
        Text(terminal_text(subtitle(report)), style="dim"),
        Text(),
        _table(rows(report)),
    ]
    if report.origin is not None:
        parts += _origin("Where the first one comes from", report.origin)
        for other in report.origin.also:
            parts += _origin(f"Also: {other.cause}", other)
    for note in report.notes:
        parts += [Text(), Text(terminal_text(f"Note: {note}."))]
    if report.repro_note is not None:
        parts += [Text(), Text(terminal_text(report.repro_note))]
    return Group(*parts)


def show(report: Report, console: Console) -> None:
    """Print the report."""
    console.print(render(report))


def _origin(title: str, origin: Origin) -> list[RenderableType]:
    advice = [f"  - {terminal_text(origin.remedy.text)}"]
    advice += [f"      {terminal_text(command)}" for command in origin.remedy.commands]
    return [
        Text(),
        Text(title, style="bold"),
        Text(f"  {terminal_text(origin.summary)}."),
        _table(place_rows(origin)),
        Text("What to do", style="bold"),
        Text("\n".join(advice)),
    ]


def _table(content: list[tuple[str, str]]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 2))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, value in content:
        table.add_row(Text(terminal_text(name)), Text(terminal_text(value)))
    return table
