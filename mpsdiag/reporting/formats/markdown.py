"""The report as Markdown that GitHub renders, short enough for an issue."""

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from urllib.parse import quote

from mpsdiag.escape import md_block, md_cell, md_text, one_line
from mpsdiag.reporting.layout import blocks
from mpsdiag.reporting.layout.sections import document
from mpsdiag.reporting.pictures.drawing import Svg
from mpsdiag.reporting.story.report import Report

# The limit of an issue, a comment and a pull request on GitHub, in characters.
GITHUB_LIMIT = 65_536

# Tried in this order until the text is short enough.
_LADDER = (
    blocks.Limits(rows=200, panels=24, logs=20, log_length=4000),
    blocks.Limits(rows=60, panels=12, logs=10, log_length=1500),
    blocks.Limits(rows=40, panels=6, logs=5, log_length=800),
    blocks.Limits(rows=20, panels=3, logs=3, log_length=400),
    blocks.Limits(rows=10, panels=1, logs=1, log_length=200),
)
# A finding of check or trace fills one table cell, and is shown completely.
WHOLE = replace(_LADDER[0], cell=1000)


def render(report: Report, pictures: Mapping[str, Svg] | None = None, *, limit: int = GITHUB_LIMIT) -> str:
    """Render a report, shortened to fewer than `limit` characters; a shortened report says so."""
    for number, limits in enumerate(_LADDER):
        parts = list(_parts(document(report, limits), limits, pictures or {}, shortened=number > 0))
        if sum(map(len, parts)) <= limit:
            return _joined(parts)
    return _cut(parts, limit)


def issue_block(made: blocks.Document) -> str:
    """Write the findings of check or trace as a block that is short enough to paste into an issue."""
    titled = replace(made, title="", headline=f"{made.title}: {made.headline}")
    parts = list(_parts(titled, WHOLE, {}))
    return _joined(parts) if sum(map(len, parts)) <= GITHUB_LIMIT else _cut(parts, GITHUB_LIMIT)


def _joined(parts: Iterable[str]) -> str:
    return "".join(parts).rstrip("\n") + "\n"


def _parts(
    made: blocks.Document, limits: blocks.Limits, pictures: Mapping[str, Svg], *, shortened: bool = False
) -> Iterator[str]:
    """The text of a document, block by block, each with a blank line after it; without pictures that have no files."""
    if made.title:
        yield f"# {md_text(made.title)}\n\n"
    yield f"**{md_text(made.headline)}**\n\n"
    if shortened:
        yield "*Shortened to fit an issue on GitHub; the HTML and CSV formats hold more.*\n\n"
    for section in made.sections:
        if section.title:
            yield f"## {md_text(section.title)}\n\n"
        for one in section.blocks:
            yield "".join(f"{line}\n" for line in _block(one, limits, pictures))


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
    if isinstance(block, blocks.Fold):
        inner = [line for one in block.blocks for line in _block(one, limits, pictures)]
        return [f"<details><summary>{md_text(block.title)}</summary>", "", *inner, "</details>", ""]
    if block.name in pictures:
        return _picture(block.alt, pictures[block.name])
    return []


def _picture(alt: str, files: Svg) -> list[str]:
    """A picture of which GitHub shows the drawing for the reader's theme."""
    light, dark = (html.escape(quote(name)) for name in (files.light, files.dark))
    dark_source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
    image = f'<img alt="{html.escape(one_line(alt, 300))}" src="{light}">'
    return [f"<picture>{dark_source}{image}</picture>", ""]


def _table(table: blocks.Table, limits: blocks.Limits) -> list[str]:
    lines = [f"**{md_text(table.title)}**", ""] if table.title else []
    lines.append("| " + " | ".join(md_cell(column.name) for column in table.columns) + " |")
    lines.append("|" + "|".join("---:" if column.number else "---" for column in table.columns) + "|")
    lines += ["| " + " | ".join(_entry(one, limits) for one in row) + " |" for row in table.rows]
    lines.append("")
    if table.left_out:
        lines += [f"… and {table.left_out:,} more rows; the CSV format has all of them.", ""]
    if table.note:
        lines += [md_text(table.note), ""]
    return lines


def _entry(entry: blocks.Entry, limits: blocks.Limits) -> str:
    text = md_cell(entry.text, limits.cell)
    return f"**{text}**" if entry.tone in {"bad", "broken"} and text else text


def _cut(parts: Sequence[str], limit: int) -> str:
    """The last resort: as many whole blocks as fit into the limit."""
    end = "\n*Cut here to fit an issue on GitHub; the HTML and CSV formats hold the rest.*\n"
    kept = list(parts)
    while kept and sum(map(len, kept)) + len(end) >= limit:
        kept.pop()
    return "".join(kept) + end
