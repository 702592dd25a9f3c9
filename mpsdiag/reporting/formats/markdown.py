"""The report as Markdown that GitHub renders, short enough for an issue."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from mpsdiag.reporting.formats.escape import md_block, md_cell, md_text, one_line
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
from mpsdiag.reporting.pictures.pictures import Files
from mpsdiag.reporting.story.story import Story

# An issue, a comment and a pull request of GitHub hold this many characters.
GITHUB_LIMIT = 65_536

# Tried in this order until the text is short enough.
_LADDER = (
    Limits(rows=200, panels=24, logs=20, log_length=4000),
    Limits(rows=60, panels=12, logs=10, log_length=1500),
    Limits(rows=40, panels=6, logs=5, log_length=800),
    Limits(rows=20, panels=3, logs=3, log_length=400),
    Limits(rows=10, panels=1, logs=1, log_length=200),
)


def render(story: Story, pictures: Mapping[str, Files] | None = None, *, limit: int = GITHUB_LIMIT) -> str:
    """Render a story; it shortens itself until it is below the limit, and says so.

    Args:
        story: What to show.
        pictures: Files of the pictures beside the report, by the picture's name.
        limit: Characters it must stay below.
    """
    for number, limits in enumerate(_LADDER):
        text = write_sections(
            "mpsdiag report", story.headline, sections(story, limits), pictures or {}, shortened=number > 0
        )
        if len(text) < limit:
            return text
    return _cut(text, limit)


def write_sections(
    title: str,
    headline: str,
    parts: Sequence[Section],
    pictures: Mapping[str, Files],
    *,
    shortened: bool = False,
) -> str:
    """Write sections under a title and a headline.

    Args:
        title: Heading of the document.
        headline: The sentence to open with.
        parts: The sections.
        pictures: Files by picture name; a picture without a file is left out.
        shortened: Say under the headline that there is more than is shown.
    """
    lines = [f"# {md_text(title)}", "", f"**{md_text(headline)}**", ""]
    if shortened:
        lines += ["*Shortened to fit an issue on GitHub; the HTML and CSV formats hold more.*", ""]
    for section in parts:
        lines += [f"## {md_text(section.title)}", ""]
        for block in section.blocks:
            lines += _block(block, pictures)
    return "\n".join(lines).rstrip("\n") + "\n"


def _block(block: Block, pictures: Mapping[str, Files]) -> list[str]:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Prose):
        return [md_text(block.text), ""]
    if isinstance(block, Heading):
        return [f"### {md_text(block.text)}", ""]
    if isinstance(block, Points):
        return [*(f"- {md_text(text)}" for text in block.texts), ""]
    if isinstance(block, Log):
        return [md_block(block.text), ""]
    if isinstance(block, Facts):
        pairs = [f"- {md_text(name)}: {md_text(value, 300)}" for name, value in block.pairs]
        return _fold(block.title, [*pairs, ""])
    if isinstance(block, Fold):
        return _fold(block.title, [line for one in block.blocks for line in _block(one, pictures)])
    if block.name in pictures:
        return _picture(block.alt, pictures[block.name])
    return []


def _picture(alt: str, files: Files) -> list[str]:
    """GitHub picks the drawing that suits the reader's theme."""
    light, dark = (html.escape(quote(name)) for name in (files.light, files.dark))
    dark_source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
    image = f'<img alt="{html.escape(one_line(alt, 300))}" src="{light}">'
    return [f"<picture>{dark_source}{image}</picture>", ""]


def _fold(title: str, lines: Sequence[str]) -> list[str]:
    return [f"<details><summary>{md_text(title)}</summary>", "", *lines, "</details>", ""]


def _table(table: Table) -> list[str]:
    lines = [f"**{md_text(table.title)}**", ""] if table.title else []
    lines.append("| " + " | ".join(md_cell(column.name) for column in table.columns) + " |")
    lines.append("|" + "|".join("---:" if column.number else "---" for column in table.columns) + "|")
    lines += ["| " + " | ".join(_item(item) for item in row) + " |" for row in table.rows]
    lines.append("")
    if table.left_out:
        lines += [f"… and {table.left_out:,} more rows; the CSV format holds all.", ""]
    if table.note:
        lines += [md_text(table.note), ""]
    return lines


def _item(item: Item) -> str:
    text = md_cell(item.text)
    return f"**{text}**" if item.tone in {"bad", "broken"} and text else text


def _cut(text: str, limit: int) -> str:
    """The last resort: whole lines up to the limit, outside any open block."""
    end = "\n\n*Cut here to fit an issue on GitHub; the HTML and CSV formats hold the rest.*\n"
    kept: list[str] = []
    safe = size = 0
    fence = ""
    depth = 0
    for line in text.splitlines():
        size += len(line) + 1
        if size + len(end) >= limit:
            break
        kept.append(line)
        if fence:
            fence = "" if line == fence else fence
        elif line.startswith("```"):
            fence = line.removesuffix("text")
        else:
            depth += line.startswith("<details>")
            depth -= line.startswith("</details>")
        if not fence and depth == 0 and not line:
            safe = len(kept)
    return "\n".join(kept[:safe]).rstrip("\n") + end
