"""The report on a terminal. Texts become `rich.text.Text`, never markup; a pipe gets them without colours."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from mpsdiag.escape import log_text, one_line
from mpsdiag.reporting.layout import blocks

if TYPE_CHECKING:
    from mpsdiag.reporting.story.report import Report

LIMITS = blocks.Limits(rows=15, cell=120, panels=4, logs=5, log_length=1200, folds=False, pictures=False)
# A finding of check or trace fills one table cell, and is shown completely.
WHOLE = replace(LIMITS, rows=60, cell=1000)

_STYLES = {
    "plain": "",
    "good": "green",
    "moved": "yellow",
    "bad": "bold red",
    "broken": "bold magenta",
    "muted": "dim",
    "affected": "bold red",
    "not_affected": "bold green",
    "undecided": "bold yellow",
}


def render(report: Report, *, width: int = 100, color: bool = False) -> str:
    """Render a report for a terminal of `width` columns, with colours or without."""
    from mpsdiag.reporting.layout.sections import document

    return write(document(report, LIMITS), LIMITS, width=width, color=color)


def write(made: blocks.Document, limits: blocks.Limits = WHOLE, *, width: int = 100, color: bool = False) -> str:
    """Render a document: the headline, then its sections; lines have no trailing blanks."""
    stream = StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    console.print(Text(one_line(made.headline, 2000), style=_STYLES.get(made.word, "bold")))
    for section in made.sections:
        if section.key == "environment" and limits is WHOLE:
            continue  # for an issue; the user at the machine knows it
        if section.title:
            console.print()
            console.print(Text(one_line(section.title).upper(), style="bold cyan"))
        console.print(Group(*(_block(block, limits) for block in section.blocks)))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _block(block: blocks.Block, limits: blocks.Limits) -> RenderableType:
    if isinstance(block, blocks.Table):
        return _table(block, limits)
    if isinstance(block, blocks.Prose):
        return Text(one_line(block.text, 2000), style=_STYLES[block.tone])
    if isinstance(block, blocks.Heading):
        return Text("\n" + one_line(block.text, 300), style="bold")
    if isinstance(block, blocks.Points):
        return Group(*(_point(text) for text in block.texts))
    if isinstance(block, blocks.Log):
        lines = Padding(Text(log_text(block.text, limits.log_length)), (0, 0, 0, 4))
        return Group(Text(one_line(block.title, 300), style="bold"), lines) if block.title else lines
    if isinstance(block, blocks.Fold):
        title = Text(one_line(block.title), style="bold")
        return Group(title, *(_block(one, limits) for one in block.blocks))
    return Text(f"Picture: {one_line(block.alt)}", style="dim")


def _point(text: str) -> RenderableType:
    """A point whose further lines are aligned with its first word."""
    grid = RichTable.grid(padding=(0, 1, 0, 0))
    grid.add_row(Text(" -"), Text(one_line(text, 1000)))
    return grid


def _table(table: blocks.Table, limits: blocks.Limits) -> RenderableType:
    made = RichTable(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, padding=(0, 1, 0, 0))
    kept = [number for number, column in enumerate(table.columns) if not column.minor]
    for column in (table.columns[number] for number in kept):
        heading = one_line(column.name, 60)
        made.add_column(
            Text(heading.replace(" ", "\n", 1) if column.number else heading),
            justify="right" if column.number else "left",
            overflow="fold",
        )
    for row in table.rows:
        made.add_row(*(_entry(row[number], limits) for number in kept))
    title = Text("\n" + one_line(table.title, 300), style="italic")
    parts: list[RenderableType] = [title, made] if table.title else [made]
    if table.left_out:
        more = f"… and {table.left_out:,} more rows; --format markdown, html or csv shows more."
        parts.append(Text(more, "dim"))
    if table.note:
        parts.append(Text(one_line(table.note, 500), style="dim"))
    return Group(*parts)


def _entry(entry: blocks.Entry, limits: blocks.Limits) -> Text:
    text = entry.text if entry.short is None else entry.short
    return Text(one_line(text, limits.cell), style=_STYLES[entry.tone])
