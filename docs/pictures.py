"""Draw the picture of `mpsdiag check` that the README shows: python docs/pictures.py (writes docs/check.svg).

The picture is what the command prints; the unique ids of the SVG are fixed, so that it only changes with the output.
"""

import io
from pathlib import Path

from rich.console import Console
from rich.text import Text

from mpsdiag.checking.run import check
from mpsdiag.reporting.check import document
from mpsdiag.reporting.formats import terminal


def main() -> None:
    """Run the check and write the picture."""
    console = Console(record=True, width=104, file=io.StringIO())
    console.print(Text.from_ansi(terminal.write(document(check(emulate="2.8")), width=104, color=True)))
    svg = console.export_svg(title="mpsdiag check --emulate 2.8", unique_id="mpsdiag-check")
    (Path(__file__).parent / "check.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
