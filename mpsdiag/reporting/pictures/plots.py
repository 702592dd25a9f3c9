"""Drawings of a report: the time of each cell, the losses, the affected releases, the spread of NaN."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mpsdiag.benching.journal.pooling import PooledCell
from mpsdiag.escape import one_line
from mpsdiag.reporting.layout.sections import gallery
from mpsdiag.reporting.pictures.drawing import Svg, Theme, draw, figure
from mpsdiag.reporting.pictures.maps import map_of_releases, spread_of
from mpsdiag.reporting.story.figures import unit_of
from mpsdiag.reporting.story.ranking import CostRow, CostTable
from mpsdiag.reporting.story.report import Panel, Report

# A drawing with more rows cannot be read; the table has them all.
MOST_ROWS = 30
MOST_CURVES = 6
MOST_POINTS = 2000
MOST_POSITIONS = 200
LARGEST = 1e100
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_MARKERS = "os^Dv*"


def pictures(report: Report) -> dict[str, Svg]:
    """Draw every picture for which the report has a place."""
    return {
        one.name: draw(partial(_DRAWN[one.name.partition("-")[0]], one.subject, one.title)) for one in gallery(report)
    }


def times(table: CostTable, title: str, theme: Theme) -> Figure:
    """Draw the evaluation step of each cell with its interval; incorrect cells are hollow, at the edge."""
    rows = [row for row in table.rows if _step(row)][:MOST_ROWS]
    made, axes = figure(theme, title, 6.6, 1.1 + 0.26 * len(rows))
    unit, scale = unit_of(max(map(_step, rows)))
    right = [row for row in rows if row.rank is not None]
    ends = [_ends(row)[1] / scale for row in right] or [1.0]
    starts = [_ends(row)[0] / scale for row in right] or [0.0]
    room = max(max(ends) - min(starts), 0.1 * max(ends))
    edge = max(ends) + 0.25 * room
    for place, row in enumerate(rows):
        colour = theme.tones[row.mark.tone]
        if row.rank is None:
            axes.plot([edge], [place], marker="o", ls="", mfc=theme.page, mec=colour, mew=1.6, ms=7)
            axes.annotate(
                row.mark.text, (edge, place), xytext=(8, 0), textcoords="offset points", va="center", color=colour
            )
            continue
        low, high = _ends(row)
        axes.plot([low / scale, high / scale], [place, place], color=colour, lw=2, solid_capstyle="butt")
        shape = "D" if row.mark.tone == "moved" else "o"
        axes.plot([_step(row) / scale], [place], marker=shape, ls="", color=colour, ms=6)
    _baseline(axes, rows, scale, theme)
    axes.set_yticks(range(len(rows)), [row.result.title for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(min(starts) - 0.08 * room, edge + 0.3 * room)
    axes.set_xlabel(f"evaluation step in {unit}, with 95 % interval; hollow: not correct")
    axes.grid(axis="x")
    return made


def _step(row: CostRow) -> float:
    return row.eval_step.value if row.eval_step else 0.0


def _ends(row: CostRow) -> tuple[float, float]:
    step = row.eval_step
    if step is None or step.low is None or step.high is None:
        return _step(row), _step(row)
    return step.low, step.high


def _baseline(axes: Axes, rows: Sequence[CostRow], scale: float, theme: Theme) -> None:
    row = next((row for row in rows if row.baseline), None)
    if row is None:
        return
    axes.axvline(_step(row) / scale, color=theme.muted, lw=1, ls="--")
    text = "baseline" if row.rank is not None else f"baseline ({row.mark.text})"
    axes.annotate(
        text,
        (_step(row) / scale, 1),
        xycoords=("data", "axes fraction"),
        xytext=(3, 2),
        textcoords="offset points",
        color=theme.muted,
        fontsize=8,
    )


def losses(panel: Panel, title: str, theme: Theme) -> Figure:
    """Draw training losses by step and evaluation losses by batch; a cross marks the first non-finite one.

    Cells with the same losses share a line.
    """
    made, (left, right) = figure(theme, title, 6.6, 4.6, nrows=2)
    _courses(left, _group(panel.results, "train_losses"), theme)
    _courses(right, _group(panel.results, "eval_losses"), theme)
    left.set_title("training loss, by step")
    right.set_title("evaluation loss, by batch")
    return made


def _drawable(values: Sequence[float]) -> list[float]:
    """Limits the number of values, and their size so that axes can be divided."""
    few = values[:: len(values) // MOST_POINTS + 1]
    return [max(-LARGEST, min(LARGEST, value)) if math.isfinite(value) else value for value in few]


def _group(results: Sequence[PooledCell], field: str) -> list[tuple[list[float], list[PooledCell]]]:
    groups: dict[tuple[str, ...], tuple[list[float], list[PooledCell]]] = {}
    for one in results:
        values = [] if one.measured is None else _drawable(getattr(one.measured, field))
        if values:
            course = tuple(f"{value:.4f}" for value in values)
            groups.setdefault(course, (values, []))[1].append(one)
    # Finite curves first; among these, those that most cells share.
    return sorted(groups.values(), key=lambda pair: (not all(map(math.isfinite, pair[0])), -len(pair[1])))


def _courses(axes: Axes, groups: list[tuple[list[float], list[PooledCell]]], theme: Theme) -> None:
    finite = [value for values, _ in groups for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    room = max(high - low, 0.02 * abs(high), 1e-6)
    bad = [pair for pair in groups if not all(map(math.isfinite, pair[0]))]
    good = [pair for pair in groups if all(map(math.isfinite, pair[0]))]
    for number, (values, cells) in enumerate(good[:MOST_CURVES]):
        axes.plot(
            range(1, len(values) + 1),
            values,
            color=theme.lines[number % len(theme.lines)],
            ls=_DASHES[number % len(_DASHES)],
            marker=_MARKERS[number % len(_MARKERS)],
            ms=4,
            lw=1.5,
            label=_who(cells),
        )
    for number, (values, cells) in enumerate(bad[:MOST_CURVES]):
        first = next(place for place, value in enumerate(values) if not math.isfinite(value))
        colour = theme.tones["bad"]
        height = high + (0.12 + 0.12 * number) * room
        axes.plot(range(1, first + 1), values[:first], color=colour, lw=1, ls=":")
        what = "NaN" if math.isnan(values[first]) else "infinite"
        axes.plot([first + 1], [height], marker="x", ls="", color=colour, ms=8, mew=2, label=f"{what}: {_who(cells)}")
    longest = max((len(values) for values, _ in groups), default=1)
    axes.set_xlim(0.5, longest + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(low - 0.1 * room, high + (0.2 + 0.12 * min(len(bad), MOST_CURVES)) * room)
    axes.grid()
    if groups:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), labelcolor=theme.text)


def error_by_position(result: PooledCell, title: str, theme: Theme) -> Figure:
    """Draw the difference of each arrangement from the sequences alone by position; crosses: not finite."""
    compared = None if result.measured is None else result.measured.invariance
    found = {} if compared is None else compared.by_position
    allowed = 0.0 if compared is None else min(one.allowed for one in compared.arrangements)
    finite = [value for values in found.values() for value in values if math.isfinite(value) and value > 0]
    low, high = min([*finite, allowed or 1.0]) / 2, max([*finite, allowed or 1.0]) * 3
    made, axes = figure(theme, title, 6.6, 3.0)
    for number, (arrangement, errors) in enumerate(found.items()):
        width = len(errors) // MOST_POSITIONS + 1
        drawn = [max(errors[start : start + width]) for start in range(0, len(errors), width)]
        places = [width * place for place in range(len(drawn))]
        heights = [max(value, low) if math.isfinite(value) else math.nan for value in drawn]
        colour, dashes = theme.lines[number % len(theme.lines)], _DASHES[number % len(_DASHES)]
        infinite = [place for place, value in zip(places, drawn, strict=True) if not math.isfinite(value)]
        axes.plot(places, heights, label=one_line(arrangement, 20), color=colour, ls=dashes, lw=1.3)
        axes.plot(infinite, [high * 2 ** (number / 2)] * len(infinite), marker="x", ls="", ms=4, color=colour)
    if allowed > 0:
        axes.axhline(allowed, color=theme.text, lw=1, ls="--", label="allowed")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
    unbounded = any(not math.isfinite(value) for values in found.values() for value in values)
    axes.set_ylim(low / 1.5, high * (2 ** (len(found) / 2) if unbounded else 1))
    axes.set_xlabel("position in the sequence, from its first token; crosses: not finite")
    axes.set_ylabel("largest difference")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid()
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), labelcolor=theme.text)
    return made


def _who(cells: Sequence[PooledCell]) -> str:
    """Name the cells of a line in a few words."""
    names = [f"{one.title}, {one.side}" for one in cells]
    text = one_line(names[0], 40)
    return text if len(names) == 1 else f"{text}\nand {len(names) - 1} more"


_DRAWN: dict[str, Callable[[Any, str, Theme], Figure]] = {
    "time": times,
    "losses": losses,
    "spread": spread_of,
    "padding": error_by_position,
    "releases": map_of_releases,
}
