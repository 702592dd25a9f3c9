"""The table of what each fix costs."""

from __future__ import annotations

import math

from mpsdiag.reporting.layout.blocks import Column, Item, Limits, Table, from_mark, without_empty
from mpsdiag.reporting.story import figures
from mpsdiag.reporting.story.cost import CostRow, CostTable, Estimate
from mpsdiag.reporting.story.marks import Tone
from mpsdiag.reporting.story.story import Panel, Story


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
    numbers = {row.eval_step.n for row in table.rows if row.eval_step}
    if len(numbers) == 1:
        where += f", n = {min(numbers)}"
    notes = []
    if table.baseline_mark is None:
        notes.append(f"The baseline, {story.baseline} attention, was not timed here: no ratios.")
    elif table.baseline_mark.tone not in {"good", "moved"}:
        notes.append(
            f"The baseline itself came out {table.baseline_mark.text}: its time is a reference, not a goal."
        )
    if any(step.noisy for row in table.rows for step in (row.eval_step, row.train_step) if step):
        notes.append(
            "~ noisy: the interquartile range is above 10 % of the median; something else was using the machine, or it "
            "was throttling."
        )
    if all(row.result.eval_pads == 0 for row in table.rows if row.eval_step):
        notes.append(
            "The timed batch has no padding: what a fix does with padded rows is not in these times."
        )
    label = "" if alone else f", {panel.label}"
    made = Table(
        title=f"{table.padding.capitalize()} padding{label}, {where}",
        columns=(
            Column("#", number=True),
            Column("attention + trainer"),
            Column("result"),
            Column("eval step", number=True),
            Column("MAD", number=True, minor=True),
            Column("eval to baseline", number=True),
            Column("Mann-Whitney p", number=True, minor=True),
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
        Item(f"{cell.attn_implementation} + {cell.trainer}", tone),
        from_mark(row.mark),
        _duration(row.eval_step, muted=not row.rank),
        _spread(row.eval_step),
        _ratio(row.eval_ratio, row),
        _test(row.eval_ratio, row),
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


def _spread(estimate: Estimate | None) -> Item:
    mad = None if estimate is None else estimate.mad
    return Item(figures.seconds(mad), "muted", math.inf if mad is None else mad)


def _test(estimate: Estimate | None, row: CostRow) -> Item:
    """A p-value is part of the claim that a ratio makes."""
    p = None if estimate is None or row.baseline or row.rank is None else estimate.p
    return Item(figures.chance(p), "muted", 2.0 if p is None else p)
