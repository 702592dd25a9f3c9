"""The look of drawings: two themes with the same shapes, as reproducible SVG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpsdiag.errors import BadInput
from mpsdiag.escape import one_line
from mpsdiag.reporting.story.figures import Tone
from mpsdiag.serialization import read_toml, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Svg:
    """A drawing in both themes; or the names of its two files, relative to the report that links them."""

    light: str
    dark: str


@dataclass(frozen=True)
class Theme:
    """Colours of a page. Each tone has a contrast of at least 4.5 : 1; shapes carry the same meaning as colours."""

    page: str
    text: str
    muted: str
    grid: str
    tones: dict[Tone, str]
    lines: list[str]
    heat: list[str]
    """Colours of the smallest and the largest value of a heat map."""


LIGHT, DARK = (Theme(**colors) for colors in read_toml(Path(__file__).with_name("themes.toml")).values())


def draw(make: Callable[[Theme], Figure]) -> Svg:
    """Draw a figure once for each theme."""
    return Svg(light=_svg(make, LIGHT), dark=_svg(make, DARK))


def figure(theme: Theme, title: str, width: float, height: float, **subplots: Any) -> tuple[Figure, Any]:
    """Make a figure with a title, without pyplot's global state; sizes in inches."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), facecolor=theme.page, layout="constrained")
    if title:
        made.suptitle(one_line(title, 90), x=0.01, ha="left", fontsize=10, fontweight="bold")
    return made, made.subplots(**subplots)


def _svg(make: Callable[[Theme], Figure], theme: Theme) -> str:
    import matplotlib as mpl

    settings: Any = {  # the stubs want each key as a literal
        "svg.hashsalt": "mpsdiag",  # ids of clip paths are the same in every run
        "svg.fonttype": "none",  # text stays text: small, searchable, readable by screen readers
        "text.parse_math": False,  # a $ in a name is a $
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": theme.text,
        "axes.facecolor": theme.page,
        "axes.edgecolor": theme.grid,
        "axes.labelcolor": theme.text,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": theme.muted,
        "ytick.color": theme.text,
        "grid.color": theme.grid,
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        **{f"{axis}tick.{size}.size": 0 for axis in "xy" for size in ("major", "minor")},
        "legend.frameon": False,
    }
    stream = io.StringIO()
    with mpl.rc_context(settings), warnings.catch_warnings():
        # A name may hold any character; one without a glyph in the font is measured as a box, which is fine.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        # Labels beside a wide interval may leave no room; the picture is then drawn without this layout.
        warnings.filterwarnings("ignore", message="constrained_layout not applied", category=UserWarning)
        make(theme).savefig(
            stream, format="svg", dpi=216, facecolor=theme.page, metadata={"Date": None, "Creator": "mpsdiag"}
        )
    svg = stream.getvalue()
    return svg[svg.index("<svg") :]  # without what only an XML file needs: the same text can be embedded


def save(pictures: Mapping[str, Svg], report: Path, failed: Callable[[str], None] | None = None) -> dict[str, Svg]:
    """Write the drawings beside a report, in a folder named after it: `report.pictures/time-1.light.svg`.

    `failed` gets a sentence for each drawing that cannot be written and is left out.

    Raises BadInput if the folder cannot be made or written and `failed` is None.
    """
    folder = report.with_name(f"{report.stem}.pictures")
    made = {}
    for name, svg in pictures.items():
        files = Svg(f"{folder.name}/{name}.light.svg", f"{folder.name}/{name}.dark.svg")
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
