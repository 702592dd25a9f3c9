"""The comparison laid out: environments side by side, then the cells, the alarming ones first."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from mpsdiag.reporting.layout import blocks
from mpsdiag.reporting.layout.cell_tables import chance_entry, ratio_entry
from mpsdiag.reporting.story.changes import NOISE_BAND, CellChange, Change, Changes
from mpsdiag.reporting.story.marks import NOT_RUN, Tone, mark
from mpsdiag.reporting.story.pooling import PooledCell

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


def change_blocks(changes: Changes, limits: blocks.Limits) -> Iterable[blocks.Block]:
    """Lay a comparison out."""
    yield blocks.Prose(changes.sentence)
    for pair in changes.pairs[: limits.panels]:
        if pair.differences:
            yield blocks.table(
                f"The environments differ, new: {pair.new.label}; old: {pair.old.label}",
                blocks.columns("fact", "old", "new"),
                pair.differences,
                lambda facts: tuple(blocks.Entry(text) for text in facts),
                limits,
            )
    loud = [row for row in changes.rows if row.change not in _CALM]
    calm = [row for row in changes.rows if row.change in _CALM]
    several = len(changes.pairs) > 1
    if loud:
        yield _table("What changed", loud, limits, several=several)
    if calm:
        table = _table("What did not change, or is on one side only", calm, limits, several=several)
        yield blocks.Fold(table.title, (table,)) if limits.folds else table


def _table(title: str, rows: list[CellChange], limits: blocks.Limits, *, several: bool) -> blocks.Table:
    ratios = ("eval, new to old", "p", "train, new to old", "p")
    made = blocks.table(
        title,
        blocks.columns("change", "cell", "environments", "old", "new", *ratios, numbers=ratios, minor=["p"]),
        rows,
        partial(_row, several=several),
        limits,
        f"Below 1 the new one is faster. A change is more than {NOISE_BAND:.0%}, its 95 % interval excludes 1,"
        " and the Mann-Whitney test agrees (p of at most 0.05).",
    )
    return blocks.without_empty(made)


def _row(row: CellChange, *, several: bool) -> tuple[blocks.Entry, ...]:
    word, tone = _WORDS[row.change]
    cell = row.cell
    where = [one.place.letter for one in (row.old, row.new) if one is not None]
    emulated = f", emulated {cell.emulate}" if cell.emulate else ""
    return (
        blocks.Entry(word, tone),
        blocks.Entry(f"{cell.title}, {cell.device}{emulated}"),
        blocks.Entry(" → ".join(where) if several else ""),
        _status(row.old),
        _status(row.new),
        ratio_entry(row.eval_ratio),
        chance_entry(row.eval_p),
        ratio_entry(row.train_ratio),
        chance_entry(row.train_p),
    )


def _status(result: PooledCell | None) -> blocks.Entry:
    return blocks.from_mark(NOT_RUN if result is None else mark([result]))
