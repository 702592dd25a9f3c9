"""The table of what each fix costs."""

from __future__ import annotations

import math

from mpsdiag.report import figures
from mpsdiag.report.blocks import Column, Item, Limits, Table, from_mark, without_empty
from mpsdiag.report.cost import CostRow, CostTable, Estimate
from mpsdiag.report.marks import Tone
from mpsdiag.report.story import Panel, Story


def cost_table(panel: Panel, table: CostTable, story: Story, limits: Limits, *, alone: bool) -> Table:
    """Lay out the timed cells of a panel on one padding side.

    Args:
        panel: Where they are from.
        table: The cells, ranked.
        story: Names the baseline.
        limits: How many rows.
        alone: The panel has no siblings, so that its name says nothing.
    """
    where = f"timed on {' and '.join(table.timed_on)}" + (" without emulation" if table.emulated else "")
    notes = []
    if table.baseline_mark is None:
        notes.append(f"The baseline, {story.baseline} attention, was not timed here: no ratios.")
    elif table.baseline_mark.tone not in {"good", "moved"}:
        notes.append(
            f"The baseline itself came out {table.baseline_mark.text}: its time is a reference, not a goal."
        )
    if any(row.eval_step and row.eval_step.noisy for row in table.rows):
        notes.append("~ noisy: the middle half of the samples spreads over more than 10 % of the median.")
    label = "" if alone else f", {panel.label}"
    made = Table(
        title=f"{table.padding.capitalize()} padding{label}, {where}",
        columns=(
            Column("#", number=True),
            Column("attention + trainer"),
            Column("result"),
            Column("eval step", number=True),
            Column("eval to baseline", number=True),
            Column("train step", number=True),
            Column("train to baseline", number=True, minor=True),
            Column("tokens/s", number=True),
            Column("memory", number=True),
            Column("n", number=True, minor=True),
        ),
        rows=tuple(_cost_row(row) for row in table.rows[: limits.rows]),
        note=" ".join(notes),
        left_out=max(0, len(table.rows) - limits.rows),
    )
    return without_empty(made)


def _cost_row(row: CostRow) -> tuple[Item, ...]:
    cell = row.result.cell
    tone: Tone = "plain" if row.rank else "muted"
    return (
        Item(str(row.rank) if row.rank else figures.NOTHING, tone, row.rank or math.inf),
        Item(f"{cell.attention} + {cell.trainer}", tone),
        from_mark(row.mark),
        _duration(row.eval_step, muted=not row.rank),
        _ratio(row.eval_ratio, row),
        _duration(row.train_step, muted=not row.rank),
        _ratio(row.train_ratio, row),
        Item(figures.rate(row.tokens_per_second), tone, row.tokens_per_second or -1.0),
        Item(figures.memory(row.result.peak_memory), tone, float(row.result.peak_memory or -1)),
        Item(str(row.eval_step.n if row.eval_step else row.train_step.n if row.train_step else 0), tone),
    )


def _duration(estimate: Estimate | None, *, muted: bool) -> Item:
    if estimate is None:
        return Item(figures.NOTHING, "muted", math.inf)
    noisy = " ~" if estimate.noisy else ""
    return Item(
        figures.interval(estimate.value, estimate.low, estimate.high) + noisy,
        "muted" if muted else "plain",
        estimate.value,
        short=figures.seconds(estimate.value) + noisy,
    )


def _ratio(estimate: Estimate | None, row: CostRow) -> Item:
    """A ratio is a claim about a fix: cells that are not right make none, except the baseline, which is 1."""
    if row.baseline:
        return Item("baseline", "muted", 1.0)
    if estimate is None or row.rank is None:
        return Item(figures.NOTHING, "muted", math.inf)
    return Item(figures.ratio(estimate.value, estimate.low, estimate.high), "plain", estimate.value)
