"""The report as Markdown that GitHub renders, short enough for an issue."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import replace
from urllib.parse import quote

from mpsdiag.escape import md_block, md_cell, md_text, one_line
from mpsdiag.reporting.layout import blocks
from mpsdiag.reporting.layout.sections import document
from mpsdiag.reporting.pictures.drawing import Svg
from mpsdiag.reporting.story.report import Report

# An issue, a comment and a pull request of GitHub hold this many characters.
GITHUB_LIMIT = 65_536

# Tried in this order until the text is short enough.
_LADDER = (
    blocks.Limits(rows=200, panels=24, logs=20, log_length=4000),
    blocks.Limits(rows=60, panels=12, logs=10, log_length=1500),
    blocks.Limits(rows=40, panels=6, logs=5, log_length=800),
    blocks.Limits(rows=20, panels=3, logs=3, log_length=400),
    blocks.Limits(rows=10, panels=1, logs=1, log_length=200),
)
# A finding of check or trace is one cell of a table, and stands there whole.
WHOLE = replace(_LADDER[0], cell=1000)


def render(report: Report, pictures: Mapping[str, Svg] | None = None, *, limit: int = GITHUB_LIMIT) -> str:
    """Render a report; it shortens itself until it has fewer than `limit` characters, and says so."""
    for number, limits in enumerate(_LADDER):
        text = write(document(report, limits), limits, pictures, shortened=number > 0)
        if len(text) < limit:
            return text
    return _cut(text, limit)


def issue_block(made: blocks.Document) -> str:
    """Write what check or trace found as the block to paste into an issue, short enough for one."""
    text = write(replace(made, title="", headline=f"{made.title}: {made.headline}"), WHOLE)
    return text if len(text) < GITHUB_LIMIT else _cut(text, GITHUB_LIMIT)


def write(
    made: blocks.Document,
    limits: blocks.Limits = _LADDER[0],
    pictures: Mapping[str, Svg] | None = None,
    *,
    shortened: bool = False,
) -> str:
    """Write a document; a picture without its files is left out."""
    lines = [f"# {md_text(made.title)}", ""] if made.title else []
    lines += [f"**{md_text(made.headline)}**", ""]
    if shortened:
        lines += ["*Shortened to fit an issue on GitHub; the HTML and CSV formats hold more.*", ""]
    for section in made.sections:
        if section.title:
            lines += [f"## {md_text(section.title)}", ""]
        for one in section.blocks:
            lines += _block(one, limits, pictures or {})
    return "\n".join(lines).rstrip("\n") + "\n"


def _block(block: blocks.Block, limits: blocks.Limits, pictures: Mapping[str, Svg]) -> list[str]:
    if isinstance(block, blocks.Table):
        return _table(block, limits)
    if isinstance(block, blocks.Prose):
        return [md_text(block.text), ""]
    if isinstance(block, blocks.Heading):
        return [f"### {md_text(block.text)}", ""]
    if isinstance(block, blocks.Points):
        return [*(f"- {md_text(text)}" for text in block.texts), ""]
    if isinstance(block, blocks.Log):
        return [md_block(block.text), ""]
    if isinstance(block, blocks.Facts):
        pairs = [f"- {md_text(name)}: {md_text(value, 300)}" for name, value in block.pairs]
        return _fold(block.title, [*pairs, ""])
    if isinstance(block, blocks.Fold):
        return _fold(block.title, [line for one in block.blocks for line in _block(one, limits, pictures)])
    if block.name in pictures:
        return _picture(block.alt, pictures[block.name])
    return []


def _picture(alt: str, files: Svg) -> list[str]:
    """GitHub picks the drawing that suits the reader's theme."""
    light, dark = (html.escape(quote(name)) for name in (files.light, files.dark))
    dark_source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
    image = f'<img alt="{html.escape(one_line(alt, 300))}" src="{light}">'
    return [f"<picture>{dark_source}{image}</picture>", ""]


def _fold(title: str, lines: Sequence[str]) -> list[str]:
    return [f"<details><summary>{md_text(title)}</summary>", "", *lines, "</details>", ""]


def _table(table: blocks.Table, limits: blocks.Limits) -> list[str]:
    lines = [f"**{md_text(table.title)}**", ""] if table.title else []
    lines.append("| " + " | ".join(md_cell(column.name) for column in table.columns) + " |")
    lines.append("|" + "|".join("---:" if column.number else "---" for column in table.columns) + "|")
    lines += ["| " + " | ".join(_entry(one, limits) for one in row) + " |" for row in table.rows]
    lines.append("")
    if table.left_out:
        lines += [f"… and {table.left_out:,} more rows; the CSV format holds all.", ""]
    if table.note:
        lines += [md_text(table.note), ""]
    return lines


def _entry(entry: blocks.Entry, limits: blocks.Limits) -> str:
    text = md_cell(entry.text, limits.cell)
    return f"**{text}**" if entry.tone in {"bad", "broken"} and text else text


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
