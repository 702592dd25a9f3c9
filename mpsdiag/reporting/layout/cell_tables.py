"""The tables of cells: the cost of each, its losses, and changes from older results."""

from collections.abc import Iterable
from functools import partial

from mpsdiag.benching.journal.pooling import PooledCell
from mpsdiag.reporting.layout import blocks
from mpsdiag.reporting.story import figures
from mpsdiag.reporting.story.changes import NOISE_BAND, CellChange, Change, Changes
from mpsdiag.reporting.story.figures import NOT_RUN, Tone, mark, severity
from mpsdiag.reporting.story.ranking import CostRow, CostTable, Estimate
from mpsdiag.reporting.story.report import Panel, Report, Scene
from mpsdiag.scenario.scenario import FirstNonfinite, Measured, finite


def cost_table(panel: Panel, table: CostTable, report: Report, limits: blocks.Limits, *, alone: bool) -> blocks.Table:
    """Lay out the timed cells of a panel with one padding side."""
    where = f"timed on {' and '.join(table.timed_on)}" + (" without emulation" if table.emulated else "")
    samples = {row.eval_step.n for row in table.rows if row.eval_step}
    if len(samples) == 1:
        where += f", n = {min(samples)}"
    notes = []
    if table.baseline_mark is None:
        notes.append(f"The baseline, {report.baseline} attention, was not timed here: no ratios.")
    elif table.baseline_mark.tone not in {"good", "moved"}:
        notes.append(f"The baseline itself is {table.baseline_mark.text}: its time is a reference, not a goal.")
    if any(step.noisy for row in table.rows for step in (row.eval_step, row.train_step) if step):
        notes.append(
            "~ noisy: the interquartile range is above 10 % of the median; something else was using the machine, or it "
            "was throttling."
        )
    if all(row.result.timing.eval_pads == 0 for row in table.rows if row.eval_step):
        notes.append("The timed batch has no padding: these times do not include the work of a fix on padded rows.")
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


def _cost_row(row: CostRow) -> Iterable[blocks.Cell]:
    tone: Tone = "plain" if row.rank else "muted"
    baseline = blocks.Entry("baseline", "muted", 1.0) if row.baseline else None
    p = row.eval_ratio.p if row.eval_ratio and not row.baseline else None
    mad = None if row.eval_step is None else row.eval_step.mad
    n = row.eval_step.n if row.eval_step else row.train_step.n if row.train_step else 0
    yield blocks.value(str(row.rank or figures.NOTHING), row.rank, tone)
    yield blocks.Entry(row.result.title, tone)
    yield row.mark
    yield _duration(row.eval_step, tone)
    yield blocks.value(figures.seconds(mad), mad, "muted")
    yield baseline or _ratio(row.eval_ratio)
    yield _chance(p)
    yield _duration(row.train_step, tone)
    yield baseline or _ratio(row.train_ratio)
    yield blocks.Entry(figures.rate(row.tokens_per_second), tone, row.tokens_per_second or -1.0)
    yield blocks.Entry(figures.memory(row.result.peak_memory), tone, float(row.result.peak_memory or -1))
    yield blocks.Entry(str(n), tone)


def _duration(step: Estimate | None, tone: Tone) -> blocks.Entry:
    if step is None:
        return blocks.value(figures.NOTHING, None, "muted")
    noisy = " ~" if step.noisy else ""
    text = figures.interval(step.value, step.low, step.high) + noisy
    return blocks.Entry(text, tone, step.value, short=figures.seconds(step.value) + noisy)


def _ratio(found: Estimate | None) -> blocks.Entry:
    """A ratio with its interval."""
    if found is None:
        return blocks.value(figures.NOTHING, None, "muted")
    return blocks.Entry(figures.ratio(found.value, found.low, found.high), "plain", found.value)


def _chance(p: float | None) -> blocks.Entry:
    """A p-value, which belongs to a ratio."""
    return blocks.value(figures.chance(p), p, "muted")


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


def _loss_row(result: PooledCell) -> Iterable[blocks.Cell]:
    found = result.measured or Measured()
    bad, stock = found.nonfinite_batches, found.stock_eval_loss
    hides = finite(stock) and found.eval_loss is not None and not finite(found.eval_loss)
    hidden = " (hides it)" if hides else ""
    yield result.side
    yield result.title
    yield mark([result])
    yield _loss(found.train_losses[-1] if found.train_losses else None)
    yield _loss(found.eval_loss)
    yield blocks.value(figures.loss(stock) + hidden, stock, "bad" if hidden else "plain")
    yield blocks.Entry(f"{bad} of {len(found.eval_losses)}", "bad" if bad else "plain", float(bad))
    yield blocks.Entry(f"{found.dead_rows:,}", "plain", float(found.dead_rows))
    yield _invariance(found)
    yield _remark(result, found)


def _invariance(measured: Measured) -> blocks.Entry:
    """The largest difference of padded batches from each sequence alone; red if it is more than allowed."""
    off, found = measured.invariance_diff, measured.invariance
    if off is None or found is None:
        return blocks.value(figures.NOTHING, None, "muted")
    return blocks.value(f"{off:.2g}", off, "bad" if found.verdict == "varies" else "plain")


def _loss(value: float | None) -> blocks.Entry:
    return blocks.value(figures.loss(value), value, "plain" if value is None or finite(value) else "bad")


def _remark(result: PooledCell, measured: Measured) -> str:
    if measured.first_nonfinite is not None:
        return where(measured.first_nonfinite)
    if result.status == "wrong" and measured.max_abs_logit_diff is not None and measured.bound is not None:
        return f"logits off by {measured.max_abs_logit_diff:.2g}, bound {measured.bound:.2g}"
    return result.reason or ""


def where(first: FirstNonfinite) -> str:
    """Where a non-finite value was first seen."""
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
    """Lay out a comparison."""
    yield blocks.Prose(changes.sentence)
    for pair in changes.pairs[: limits.panels]:
        if pair.differences:
            yield blocks.table(
                f"The environments differ, new: {pair.new.label}; old: {pair.old.label}",
                ("fact", "old", "new"),
                pair.differences,
                iter,
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


def _change_row(row: CellChange, *, several: bool) -> Iterable[blocks.Cell]:
    cell = row.cell
    places = [one.place.letter for one in (row.old, row.new) if one is not None]
    emulated = f", emulated {cell.emulate}" if cell.emulate else ""
    yield blocks.Entry(*_CHANGES[row.change])
    yield f"{cell.title}, {cell.device}{emulated}"
    yield " → ".join(places) if several else ""
    for result in (row.old, row.new):
        yield NOT_RUN if result is None else mark([result])
    for ratio, p in ((row.eval_ratio, row.eval_p), (row.train_ratio, row.train_p)):
        yield _ratio(ratio)
        yield _chance(p)
