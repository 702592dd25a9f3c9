"""Draw every picture of README, docs and reports from the current output of the program: make pictures.

A test draws them again and compares; only the digits of numbers may differ from machine to machine.
"""

from __future__ import annotations

import io
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
WIDTH = 100
SCREEN = ("answer", "fixes", "advice")


def check_screen() -> str:
    """The first screen of `mpsdiag check --emulate 2.8`: the answer, as the terminal shows it."""
    from mpsdiag.checking.run import check
    from mpsdiag.reporting.check import document
    from mpsdiag.reporting.formats import terminal

    made = document(check(emulate="2.8"))
    made = replace(made, sections=tuple(one for one in made.sections if one.key in SCREEN))
    console = Console(record=True, width=WIDTH, file=io.StringIO(), color_system="standard")
    console.print(Text.from_ansi(terminal.write(made, width=WIDTH, color=True) + "…"))
    return console.export_svg(title="mpsdiag check --emulate 2.8", unique_id="mpsdiag-check")


def report_pictures(folder: Path) -> dict[Path, str]:
    """The drawings beside a kept report, from its journal."""
    import mpsdiag
    from mpsdiag.reporting.pictures.plots import pictures

    found = {}
    for name, svg in pictures(mpsdiag.report(folder / "journal.jsonl")).items():
        found[folder / "report.pictures" / f"{name}.light.svg"] = svg.light
        found[folder / "report.pictures" / f"{name}.dark.svg"] = svg.dark
    return found


def defect_map() -> dict[Path, str]:
    """The map torch release x known defect, from the kept table."""
    folder = ROOT / "reports" / "defects"
    script: Any = runpy.run_path(str(ROOT / "benchmarks" / "defect_table.py"))
    return {folder / "defects.svg": script["as_svg"](*script["read_csv"](folder / "defects.csv"))}


def pictures() -> dict[Path, str]:
    """Every picture, by the file that keeps it."""
    made = {ROOT / "docs" / "check.svg": check_screen(), **defect_map()}
    for kept in sorted((ROOT / "reports").glob("*/report.pictures")):
        made |= report_pictures(kept.parent)
    return made


def main() -> None:
    """Write those that differ."""
    for path, svg in pictures().items():
        if not path.exists() or path.read_text(encoding="utf-8") != svg:
            path.write_text(svg, encoding="utf-8")
            sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
