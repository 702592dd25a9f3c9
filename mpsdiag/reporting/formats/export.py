"""A report in each format, and as the folder that `bench` writes."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Final, Literal, get_args

from mpsdiag.errors import BadInput
from mpsdiag.reporting.story.report import Report
from mpsdiag.serialization import write_atomically

Format = Literal["terminal", "markdown", "html", "csv", "json", "parquet"]
FORMATS: Final[tuple[str, ...]] = get_args(Format)
SUFFIXES: Final[dict[str, str]] = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".csv": "csv",
    ".json": "json",
    ".parquet": "parquet",
    ".txt": "terminal",
}


def text_of(report: Report, form: str, *, width: int = 100, color: bool = False, beside: Path | None = None) -> str:
    """Render a report in a text format: any of FORMATS except parquet.

    Raises BadInput if the pictures cannot be written.
    """
    if form not in FORMATS or form == "parquet":
        raise ValueError(f"no text format '{form}'")
    if form in {"csv", "json"}:
        from mpsdiag.reporting.formats import cells

        return cells.csv_text(report) if form == "csv" else cells.json_text(report)
    render: Callable[..., str] = import_module(f"mpsdiag.reporting.formats.{form}").render
    if form == "terminal":
        return render(report, width=width, color=color)
    if form == "markdown" and beside is None:
        return render(report)
    from mpsdiag.reporting.pictures import drawing, plots

    drawn = plots.pictures(report)
    return render(report, drawing.save(drawn, beside) if form == "markdown" and beside is not None else drawn)


def write(report: Report, form: str, path: Path) -> None:
    """Write a report in one format into a file. Raises BadInput if it cannot be written."""
    if form == "parquet":
        from mpsdiag.reporting.formats.cells import parquet

        write_atomically(path, parquet(report))
    else:
        write_atomically(path, text_of(report, form, beside=path))


def write_folder(report: Report, folder: Path, failed: Callable[[str], None] | None = None) -> list[Path]:
    """Write `report.md` with its pictures, `report.html` and `cells.csv`; those of the three that were written.

    Existing files are replaced. `failed` gets a sentence for each file that cannot be written; the others still
    are. Raises BadInput if the folder cannot be made or written and `failed` is None.
    """
    from mpsdiag.reporting.formats import html, markdown
    from mpsdiag.reporting.formats.cells import csv_text
    from mpsdiag.reporting.pictures import drawing, plots

    drawn = plots.pictures(report)
    page, paper, cells = folder / "report.html", folder / "report.md", folder / "cells.csv"
    saved = drawing.save(drawn, paper, failed)
    written: list[Path] = []
    files: tuple[tuple[Path, Callable[[], str]], ...] = (
        (paper, lambda: markdown.render(report, saved)),
        (page, lambda: html.render(report, drawn)),
        (cells, lambda: csv_text(report)),
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


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's cyclic garbage collector.

    Everything that a report reads lives until it is done, and searching it for garbage would triple the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
