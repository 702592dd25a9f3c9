"""Maps: which release has which defect, and how NaN spreads in a network."""

from collections.abc import Sequence

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from mpsdiag.benching.journal.pooling import PooledCell
from mpsdiag.escape import one_line
from mpsdiag.reporting.pictures.drawing import Theme, figure
from mpsdiag.reporting.story.figures import NOT_RUN, Mark, mark
from mpsdiag.reporting.story.report import Report, Scene
from mpsdiag.words import attention_modes


def status_map(
    rows: Sequence[str], columns: Sequence[str], marks: Sequence[Sequence[Mark]], title: str, theme: Theme
) -> Figure:
    """Draw a table of marks as coloured fields with symbols: release x defect, release x attention."""
    made, axes = figure(theme, title, 2.0 + 0.5 * max(len(columns), 10), 1.3 + 0.3 * len(rows))
    for down, line in enumerate(marks):
        for across, one in enumerate(line):
            colour = theme.tones[one.tone]
            filled = one.tone in {"bad", "broken", "moved"}
            axes.add_patch(
                Rectangle(
                    (across - 0.46, down - 0.44),
                    0.92,
                    0.88,
                    facecolor=colour if filled else theme.page,
                    edgecolor=colour if one is not NOT_RUN else theme.grid,
                    lw=0.8,
                )
            )
            axes.text(
                across, down, one.symbol, ha="center", va="center", color=theme.page if filled else colour, fontsize=9
            )
    axes.set_xlim(-0.6, len(columns) - 0.4)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xticks(range(len(columns)), [one_line(text, 24) for text in columns], rotation=45, ha="left")
    axes.set_yticks(range(len(rows)), [one_line(text, 30) for text in rows])
    axes.xaxis.tick_top()
    axes.tick_params(colors=theme.text)
    axes.spines[:].set_visible(False)
    return made


def map_of_releases(report: Report, title: str, theme: Theme) -> Figure:
    """Draw which attention modes are correct in which scene, with the standard trainer and left padding."""
    results = [one for scene in report.scenes for one in scene.results]
    columns = attention_modes(one.pair[0] for one in results if (one.pair[1], one.side) == ("standard", "left"))
    return status_map(
        rows=[_short(scene) for scene in report.scenes],
        columns=columns,
        marks=[[mark(_cells(scene, word)) for word in columns] for scene in report.scenes],
        title=title,
        theme=theme,
    )


def _short(scene: Scene) -> str:
    """Name a scene in a few characters: what was emulated, the environment, or the device and its torch."""
    if scene.emulated is not None:
        cell = scene.results[0].cell
        return (
            f"emulated {cell.emulate}, macOS {cell.emulate_macos}" if cell.emulate_macos else f"emulated {cell.emulate}"
        )
    if scene.results[0].cell.environment is not None:
        return f"{scene.device}, {scene.results[0].cell.environment}"
    return f"{scene.device}, torch {dict(scene.place.facts).get('torch', 'unknown')}"


def _cells(scene: Scene, attention: str) -> list[PooledCell]:
    wanted = (attention, "standard", "left")
    return [one for one in scene.results if (*one.pair, one.side) == wanted]


def spread_of(result: PooledCell, title: str, theme: Theme) -> Figure:
    """Draw how many sequences of the first bad batch are non-finite, layer by layer and position by position."""
    rows = result.measured.nonfinite_rows if result.measured else []
    width = max(map(len, rows), default=1)
    counts = [list(row) + [0] * (width - len(row)) for row in rows]
    made, axes = figure(theme, title, 6.6, 1.5 + 0.3 * len(counts))
    shades = LinearSegmentedColormap.from_list("spread", theme.heat)
    top = max((value for row in counts for value in row), default=1)
    # One image: 512 positions as rectangles would be megabytes of SVG, with seams between them.
    image = axes.imshow(
        counts, cmap=shades, vmin=0, vmax=max(top, 1), aspect="auto", interpolation="nearest", origin="lower"
    )
    axes.set_yticks(range(len(counts)), [f"layer {number}" for number in range(len(counts))])
    axes.set_xlabel("position in the sequence (padding on the left)" if result.side == "left" else "position")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[:].set_visible(False)
    bar = made.colorbar(image, ax=axes, ticks=sorted({0, max(top, 1)}), pad=0.01)
    bar.set_label("non-finite\nsequences", color=theme.text, fontsize=8)
    bar.ax.tick_params(colors=theme.text, length=0)
    bar.outline.set_visible(False)
    return made
