"""The comparison laid out: environments side by side, then the cells, the alarming ones first."""

from __future__ import annotations

import math
from collections.abc import Iterable

from mpsdiag.reporting.layout.blocks import (
    Block,
    Column,
    Fold,
    Item,
    Limits,
    Prose,
    Table,
    from_mark,
    without_empty,
)
from mpsdiag.reporting.story import figures
from mpsdiag.reporting.story.compare import NOISE_BAND, Change, Comparison, Row
from mpsdiag.reporting.story.cost import Estimate
from mpsdiag.reporting.story.marks import NOT_RUN, Tone, mark
from mpsdiag.reporting.story.pool import Result

_WORDS: dict[Change, tuple[str, Tone]] = {
    "newly_bad": ("✗ newly bad", "bad"),
    "newly_fixed": ("✓ newly fixed", "good"),
    "still_bad": ("✗ still bad", "bad"),
    "worse": ("▲ slower", "moved"),
    "improved": ("▼ faster", "good"),
    "same": ("= same", "plain"),
    "only_new": ("· only new", "muted"),
    "only_old": ("· only old", "muted"),
}
_CALM = {"same", "only_new", "only_old"}


def compare_blocks(comparison: Comparison, limits: Limits) -> Iterable[Block]:
    """Lay a comparison out.

    Args:
        comparison: What to show.
        limits: How much of it.
    """
    yield Prose(comparison.sentence)
    for pair in comparison.pairs[: limits.panels]:
        if pair.differences:
            yield Table(
                title=f"The environments differ, new: {pair.new.label}; old: {pair.old.label}",
                columns=(Column("fact"), Column("old"), Column("new")),
                rows=tuple(tuple(Item(text) for text in facts) for facts in pair.differences[: limits.rows]),
                left_out=max(0, len(pair.differences) - limits.rows),
            )
    loud = [row for row in comparison.rows if row.change not in _CALM]
    calm = [row for row in comparison.rows if row.change in _CALM]
    several = len(comparison.pairs) > 1
    if loud:
        yield _table("What changed", loud, limits, several=several)
    if calm:
        table = _table("What did not change, or is on one side only", calm, limits, several=several)
        yield Fold(table.title, (table,)) if limits.folds else table


def _table(title: str, rows: list[Row], limits: Limits, *, several: bool) -> Table:
    made = Table(
        title=title,
        columns=(
            Column("change"),
            Column("cell"),
            Column("environments"),
            Column("old"),
            Column("new"),
            Column("eval, new to old", number=True),
            Column("p", number=True, minor=True),
            Column("train, new to old", number=True),
            Column("p", number=True, minor=True),
        ),
        rows=tuple(_row(row, several=several) for row in rows[: limits.rows]),
        note=f"Below 1 the new one is faster. A change is more than {NOISE_BAND:.0%}, its 95 % interval leaves 1"
        " out, and the Mann-Whitney test agrees (p of at most 0.05).",
        left_out=max(0, len(rows) - limits.rows),
    )
    return without_empty(made)


def _row(row: Row, *, several: bool) -> tuple[Item, ...]:
    word, tone = _WORDS[row.change]
    cell = row.cell
    where = [one.place.letter for one in (row.old, row.new) if one is not None]
    emulated = f", emulated {cell.emulate}" if cell.emulate else ""
    return (
        Item(word, tone),
        Item(f"{cell.title}, {cell.device}{emulated}"),
        Item(" → ".join(where) if several else ""),
        _status(row.old),
        _status(row.new),
        _ratio(row.eval_ratio),
        _p(row.eval_p),
        _ratio(row.train_ratio),
        _p(row.train_p),
    )


def _status(result: Result | None) -> Item:
    return from_mark(NOT_RUN if result is None else mark([result]))


def _ratio(estimate: Estimate | None) -> Item:
    if estimate is None:
        return Item(figures.NOTHING, "muted", math.inf)
    return Item(figures.ratio(estimate.value, estimate.low, estimate.high), "plain", estimate.value)


def _p(value: float | None) -> Item:
    return Item(
        figures.chance(value), "muted" if value is None else "plain", math.inf if value is None else value
    )
