"""The tables of cells: what each costs, what it trained and evaluated to, and what changed against older results."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

from mpsdiag.benching.journal.pooling import PooledCell
from mpsdiag.reporting.layout import blocks
from mpsdiag.reporting.story import figures
from mpsdiag.reporting.story.changes import NOISE_BAND, CellChange, Change, Changes
from mpsdiag.reporting.story.marks import NOT_RUN, Tone, mark, severity
from mpsdiag.reporting.story.ranking import CostRow, CostTable, Estimate
from mpsdiag.reporting.story.report import Panel, Report, Scene
from mpsdiag.scenario.scenario import FirstNonfinite, Measured


def cost_table(panel: Panel, table: CostTable, report: Report, limits: blocks.Limits, *, alone: bool) -> blocks.Table:
    """Lay out the timed cells of a panel on one padding side."""
    where = f"timed on {' and '.join(table.timed_on)}" + (" without emulation" if table.emulated else "")
    samples = {row.eval_step.n for row in table.rows if row.eval_step}
    if len(samples) == 1:
        where += f", n = {min(samples)}"
    notes = []
    if table.baseline_mark is None:
        notes.append(f"The baseline, {report.baseline} attention, was not timed here: no ratios.")
    elif table.baseline_mark.tone not in {"good", "moved"}:
        notes.append(f"The baseline itself came out {table.baseline_mark.text}: its time is a reference, not a goal.")
    if any(step.noisy for row in table.rows for step in (row.eval_step, row.train_step) if step):
        notes.append(
            "~ noisy: the interquartile range is above 10 % of the median; something else was using the machine, or it "
            "was throttling."
        )
    if all(row.result.timing.eval_pads == 0 for row in table.rows if row.eval_step):
        notes.append("The timed batch has no padding: what a fix does with padded rows is not in these times.")
    label = "" if alone else f", {panel.label}"
    minor = ("MAD", "Mann-Whitney p", "train to baseline", "n")
    numbers = ["eval step", "MAD", "eval to baseline", "Mann-Whitney p", "train step", "train to baseline"]
    numbers += ["tokens/s", "memory", "n"]
    made = blocks.table(
        f"{table.padding.capitalize()} padding{label}, {where}",
        blocks.columns("#", "attention + trainer", "result", *numbers, numbers=("#", *numbers), minor=minor),
        table.rows,
        _cost_row,
        limits,
        " ".join(notes),
    )
    return blocks.without_empty(made)


def _cost_row(row: CostRow) -> tuple[blocks.Entry, ...]:
    tone: Tone = "plain" if row.rank else "muted"
    baseline = blocks.Entry("baseline", "muted", 1.0) if row.baseline else None
    return (
        blocks.Entry(str(row.rank) if row.rank else figures.NOTHING, tone, row.rank or math.inf),
        blocks.Entry(row.result.title, tone),
        blocks.from_mark(row.mark),
        _duration(row.eval_step, muted=not row.rank),
        _spread(row.eval_step),
        baseline or _ratio_entry(row.eval_ratio),
        _chance_entry(row.eval_ratio.p if row.eval_ratio and not row.baseline else None),
        _duration(row.train_step, muted=not row.rank),
        baseline or _ratio_entry(row.train_ratio),
        blocks.Entry(figures.rate(row.tokens_per_second), tone, row.tokens_per_second or -1.0),
        blocks.Entry(figures.memory(row.result.peak_memory), tone, float(row.result.peak_memory or -1)),
        blocks.Entry(str(row.eval_step.n if row.eval_step else row.train_step.n if row.train_step else 0), tone),
    )


def _duration(estimate: Estimate | None, *, muted: bool) -> blocks.Entry:
    if estimate is None:
        return blocks.Entry(figures.NOTHING, "muted", math.inf)
    noisy = " ~" if estimate.noisy else ""
    return blocks.Entry(
        figures.interval(estimate.value, estimate.low, estimate.high) + noisy,
        "muted" if muted else "plain",
        estimate.value,
        short=figures.seconds(estimate.value) + noisy,
    )


def _ratio_entry(estimate: Estimate | None) -> blocks.Entry:
    """A ratio with its interval."""
    if estimate is None:
        return blocks.Entry(figures.NOTHING, "muted", math.inf)
    return blocks.Entry(figures.ratio(estimate.value, estimate.low, estimate.high), "plain", estimate.value)


def _chance_entry(p: float | None) -> blocks.Entry:
    """A p-value, which is part of the claim that a ratio makes."""
    return blocks.Entry(figures.chance(p), "muted", math.inf if p is None else p)


def _spread(estimate: Estimate | None) -> blocks.Entry:
    mad = None if estimate is None else estimate.mad
    return blocks.Entry(figures.seconds(mad), "muted", math.inf if mad is None else mad)


STOCK_PRINTS = (
    "Stock prints: the evaluation loss that transformers' own Trainer would have shown with its default"
    " logging_nan_inf_filter, which leaves non-finite losses out of the mean."
)


def loss_table(panel: Panel, scene: Scene, limits: blocks.Limits, *, alone: bool) -> blocks.Table:
    """Lay out the losses of a panel."""
    results = sorted((one for one in panel.results if one.measured), key=lambda one: (one.side, severity(one.status)))
    title = [] if alone else [panel.label]
    where = scene.emulated or f"on {scene.device}"
    title.append(where[:1].upper() + where[1:] if alone and scene.emulated else where)
    numbers = ("train loss", "eval loss", "stock prints", "bad batches", "fully masked rows", "padded to alone")
    remark = "where, or how far off"
    heads = blocks.columns(
        "padding", "attention + trainer", "result", *numbers, remark, numbers=numbers, minor=[remark]
    )
    return blocks.without_empty(blocks.table(", ".join(title), heads, results, _loss_row, limits))


def _loss_row(result: PooledCell) -> tuple[blocks.Entry, ...]:
    measured = result.measured
    if measured is None:
        raise ValueError("a result without measurements has no losses")
    train = measured.train_losses
    batches = len(measured.eval_losses)
    hidden = (
        measured.stock_eval_loss is not None
        and math.isfinite(measured.stock_eval_loss)
        and measured.eval_loss is not None
        and not math.isfinite(measured.eval_loss)
    )
    bad = measured.nonfinite_batches
    return (
        blocks.Entry(result.side),
        blocks.Entry(result.title),
        blocks.from_mark(mark([result])),
        _loss_entry(train[-1] if train else None),
        _loss_entry(measured.eval_loss),
        blocks.Entry(
            figures.loss(measured.stock_eval_loss) + (" (hides it)" if hidden else ""),
            "bad" if hidden else "plain",
            _finite(measured.stock_eval_loss),
        ),
        blocks.Entry(f"{bad} of {batches}", "bad" if bad else "plain", float(bad)),
        blocks.Entry(f"{measured.dead_rows:,}", "plain", float(measured.dead_rows)),
        _invariance_entry(measured),
        blocks.Entry(_remark(result)),
    )


def _invariance_entry(measured: Measured) -> blocks.Entry:
    """The largest difference of padded batches from each sequence alone; red where it is more than allowed."""
    off, found = measured.invariance_diff, measured.invariance
    if off is None or found is None:
        return blocks.Entry(figures.NOTHING, "muted", math.inf)
    return blocks.Entry(f"{off:.2g}", "bad" if found.verdict == "varies" else "plain", _finite(off))


def _loss_entry(value: float | None) -> blocks.Entry:
    finite = value is None or math.isfinite(value)
    return blocks.Entry(figures.loss(value), "plain" if finite else "bad", _finite(value))


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.inf


def _remark(result: PooledCell) -> str:
    measured = result.measured
    if measured is None:
        return ""
    first = measured.first_nonfinite
    if first is not None:
        return where(first)
    if result.status == "wrong" and measured.max_abs_logit_diff is not None and measured.bound is not None:
        return f"logits off by {measured.max_abs_logit_diff:.2g}, bound {measured.bound:.2g}"
    return result.reason or ""


def where(first: FirstNonfinite) -> str:
    """Say where a non-finite value was first seen."""
    layer = "" if first.layer is None else f"layer {first.layer}, "
    return f"batch {first.batch}, {layer}{first.module}: {first.operation}"


_CHANGES: dict[Change, tuple[str, Tone]] = {
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
        yield _change_table("What changed", loud, limits, several=several)
    if calm:
        table = _change_table("What did not change, or is on one side only", calm, limits, several=several)
        yield blocks.Fold(table.title, (table,)) if limits.folds else table


def _change_table(title: str, rows: list[CellChange], limits: blocks.Limits, *, several: bool) -> blocks.Table:
    ratios = ("eval, new to old", "p", "train, new to old", "p")
    made = blocks.table(
        title,
        blocks.columns("change", "cell", "environments", "old", "new", *ratios, numbers=ratios, minor=["p"]),
        rows,
        partial(_change_row, several=several),
        limits,
        f"Below 1 the new one is faster. A change is more than {NOISE_BAND:.0%}, its 95 % interval excludes 1,"
        " and the Mann-Whitney test agrees (p of at most 0.05).",
    )
    return blocks.without_empty(made)


def _change_row(row: CellChange, *, several: bool) -> tuple[blocks.Entry, ...]:
    word, tone = _CHANGES[row.change]
    cell = row.cell
    where = [one.place.letter for one in (row.old, row.new) if one is not None]
    emulated = f", emulated {cell.emulate}" if cell.emulate else ""
    return (
        blocks.Entry(word, tone),
        blocks.Entry(f"{cell.title}, {cell.device}{emulated}"),
        blocks.Entry(" → ".join(where) if several else ""),
        _status(row.old),
        _status(row.new),
        _ratio_entry(row.eval_ratio),
        _chance_entry(row.eval_p),
        _ratio_entry(row.train_ratio),
        _chance_entry(row.train_p),
    )


def _status(result: PooledCell | None) -> blocks.Entry:
    return blocks.from_mark(NOT_RUN if result is None else mark([result]))
