"""Draw the picture of `mpsdiag check` that the README shows: python docs/pictures.py (writes docs/check.svg).

The picture is what the command prints; the unique ids of the SVG are fixed, so that it only changes with the output.
"""

import io
from pathlib import Path

from rich.console import Console

from mpsdiag.checking.run import check
from mpsdiag.reporting.check_terminal import show


def main() -> None:
    """Run the check and write the picture."""
    diagnosis = check(emulate="2.8").model_copy(update={"not_probed": []})
    console = Console(record=True, width=118, file=io.StringIO())
    show(diagnosis, console)
    svg = console.export_svg(title="mpsdiag check --emulate 2.8", unique_id="mpsdiag-check")
    (Path(__file__).parent / "check.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
