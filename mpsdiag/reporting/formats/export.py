"""A story as text in each format, and as the folder that `bench` leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, get_args

from mpsdiag.errors import BadInput
from mpsdiag.reporting.story.story import Story
from mpsdiag.serialization import write_atomically

Format = Literal["terminal", "markdown", "html", "csv", "json"]
FORMATS: Final[tuple[str, ...]] = get_args(Format)
SUFFIXES: Final[dict[str, str]] = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".csv": "csv",
    ".json": "json",
    ".txt": "terminal",
}


def text_of(
    story: Story, form: str, *, width: int = 100, color: bool = False, beside: Path | None = None
) -> str:
    """Render a story in one format.

    Args:
        story: What to render.
        form: One of FORMATS.
        width: Columns, for the terminal.
        color: Whether the terminal shows colours.
        beside: Path of the report; for Markdown the pictures are written beside it. None: no pictures there.

    Raises:
        BadInput: The pictures cannot be written.
        ValueError: There is no such format.
    """
    if form == "terminal":
        from mpsdiag.reporting.formats import terminal

        return terminal.render(story, width=width, color=color)
    if form == "csv":
        from mpsdiag.reporting.formats import csv_table

        return csv_table.render(story)
    if form == "json":
        from mpsdiag.reporting.formats import json_document

        return json_document.render(story)
    if form == "html":
        from mpsdiag.reporting.formats import html
        from mpsdiag.reporting.pictures import plots

        return html.render(story, plots.pictures(story))
    if form == "markdown":
        from mpsdiag.reporting.formats import markdown

        if beside is None:
            return markdown.render(story)
        from mpsdiag.reporting.pictures import pictures, plots

        return markdown.render(story, pictures.save(plots.pictures(story), beside))
    raise ValueError(f"no format '{form}'")


def write_folder(story: Story, folder: Path, failed: Callable[[str], None] | None = None) -> list[Path]:
    """Write `report.md` with its pictures, `report.html` and `cells.csv`; files that are there are replaced.

    Args:
        story: What to write.
        folder: Where to; it is made if need be.
        failed: Called with a sentence for each file that cannot be written; the others still are. None: raise.

    Returns:
        Those of the three files that were written.

    Raises:
        BadInput: The folder cannot be made or written, and `failed` is None.
    """
    from mpsdiag.reporting.formats import csv_table, html, markdown
    from mpsdiag.reporting.pictures import pictures, plots

    drawn = plots.pictures(story)
    page, paper, cells = folder / "report.html", folder / "report.md", folder / "cells.csv"
    saved = pictures.save(drawn, paper, failed)
    written: list[Path] = []
    files: tuple[tuple[Path, Callable[[], str]], ...] = (
        (paper, lambda: markdown.render(story, saved)),
        (page, lambda: html.render(story, drawn)),
        (cells, lambda: csv_table.render(story)),
    )
    for path, render in files:
        try:
            write_atomically(path, render())
            written.append(path)
        except BadInput as problem:  # noqa: PERF203 - three files
            if failed is None:
                raise
            failed(str(problem))
    return written
