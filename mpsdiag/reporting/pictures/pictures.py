"""Drawings of a report: each as SVG for a light and for a dark page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mpsdiag.errors import BadInput
from mpsdiag.serialization import write_atomically


@dataclass(frozen=True)
class Svg:
    """One drawing, twice."""

    light: str
    dark: str


@dataclass(frozen=True)
class Files:
    """The names of a drawing's files, relative to the report that links them."""

    light: str
    dark: str


def save(
    pictures: Mapping[str, Svg], report: Path, failed: Callable[[str], None] | None = None
) -> dict[str, Files]:
    """Write the drawings beside a report, into a folder named after it: `report.pictures/time-1.light.svg`.

    Args:
        pictures: The drawings by name.
        report: The path of the report.
        failed: Called with a sentence for each drawing that cannot be written and is left out. None: raise.

    Raises:
        BadInput: The folder cannot be made or written, and `failed` is None.
    """
    folder = report.with_name(f"{report.stem}.pictures")
    made = {}
    for name, svg in pictures.items():
        files = Files(f"{folder.name}/{name}.light.svg", f"{folder.name}/{name}.dark.svg")
        try:
            write_atomically(report.parent / files.light, svg.light)
            write_atomically(report.parent / files.dark, svg.dark)
        except BadInput as problem:
            if failed is None:
                raise
            failed(f"The picture {name} is left out of the report: {problem}")
            continue
        made[name] = files
    return made
