"""The report on a terminal. Texts become `rich.text.Text`, never markup; a pipe gets them without colours."""

from __future__ import annotations

from io import StringIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from mpsdiag.reporting.formats.escape import log_text, one_line
from mpsdiag.reporting.layout.blocks import (
    Block,
    Facts,
    Fold,
    Heading,
    Item,
    Limits,
    Log,
    Points,
    Prose,
    Section,
    Table,
)
from mpsdiag.reporting.layout.tables import sections
from mpsdiag.reporting.story.story import Story

LIMITS = Limits(rows=15, panels=4, logs=5, log_length=1200, folds=False, pictures=False)

_STYLES = {
    "plain": "",
    "good": "green",
    "moved": "yellow",
    "bad": "bold red",
    "broken": "bold magenta",
    "muted": "dim",
}


def render(story: Story, *, width: int = 100, color: bool = False) -> str:
    """Render a story for a terminal.

    Args:
        story: What to show.
        width: Columns of the terminal.
        color: Whether to send colours.
    """
    return print_sections(story.headline, sections(story, LIMITS), width=width, color=color)


def print_sections(headline: str, parts: list[Section], *, width: int, color: bool) -> str:
    """Render sections under a headline; lines have no trailing blanks."""
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
    console.print(Text(one_line(headline, 2000), style="bold"))
    for section in parts:
        console.print()
        console.print(Text(one_line(section.title).upper(), style="bold cyan"))
        console.print(Group(*(_block(block) for block in section.blocks)))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _block(block: Block) -> RenderableType:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Prose):
        return Text(one_line(block.text, 2000), style=_STYLES[block.tone])
    if isinstance(block, Heading):
        return Text("\n" + one_line(block.text, 300), style="bold")
    if isinstance(block, Points):
        return Group(*(Padding(Text(f"- {one_line(text, 1000)}"), (0, 0, 0, 1)) for text in block.texts))
    if isinstance(block, Log):
        return _log(block)
    if isinstance(block, Facts):
        return _facts(block)
    if isinstance(block, Fold):
        return Group(Text(one_line(block.title), style="bold"), *(_block(one) for one in block.blocks))
    return Text(f"Picture: {one_line(block.alt)}", style="dim")


def _table(table: Table) -> RenderableType:
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
        made.add_row(*(_item(row[number]) for number in kept))
    title = Text("\n" + one_line(table.title, 300), style="italic")
    parts: list[RenderableType] = [title, made] if table.title else [made]
    if table.left_out:
        parts.append(
            Text(f"… and {table.left_out:,} more rows; --format markdown, html or csv shows more.", "dim")
        )
    if table.note:
        parts.append(Text(one_line(table.note, 500), style="dim"))
    return Group(*parts)


def _item(item: Item) -> Text:
    return Text(one_line(item.text if item.short is None else item.short, 120), style=_STYLES[item.tone])


def _log(log: Log) -> RenderableType:
    lines = Padding(Text(log_text(log.text, LIMITS.log_length)), (0, 0, 0, 4))
    return Group(Text(one_line(log.title, 300), style="bold"), lines) if log.title else lines


def _facts(facts: Facts) -> RenderableType:
    grid = RichTable.grid(padding=(0, 2))
    for name, value in facts.pairs[:60]:
        grid.add_row(Text(f"  {one_line(name, 60)}", style="dim"), Text(one_line(value, 300)))
    return Group(Text(one_line(facts.title, 300)), grid)
