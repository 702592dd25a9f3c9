"""The table of losses: what the cells trained and evaluated to, and what stock transformers would have shown."""

from __future__ import annotations

import math

from mpsdiag.reporting.layout.blocks import Column, Item, Limits, Table, from_mark
from mpsdiag.reporting.story import figures
from mpsdiag.reporting.story.marks import mark, severity
from mpsdiag.reporting.story.pool import Result
from mpsdiag.reporting.story.story import Panel, Scene
from mpsdiag.scenario.scenario import FirstNonfinite

STOCK_PRINTS = (
    "Stock prints: the evaluation loss that transformers' own Trainer would have shown with its default"
    " logging_nan_inf_filter, which leaves non-finite losses out of the mean."
)


def loss_table(panel: Panel, scene: Scene, limits: Limits, *, alone: bool) -> Table:
    """Lay out the losses of a panel.

    Args:
        panel: The cells.
        scene: Says what was emulated.
        limits: How many rows.
        alone: The panel has no siblings, so that its name says nothing.
    """
    results = sorted(
        (one for one in panel.results if one.measured),
        key=lambda one: (one.cell.padding_side, severity(one.status)),
    )
    title = [] if alone else [panel.label]
    where = scene.emulated or f"on {scene.device}"
    title.append(where[:1].upper() + where[1:] if alone and scene.emulated else where)
    return Table(
        title=", ".join(title),
        columns=(
            Column("padding"),
            Column("attention + trainer"),
            Column("result"),
            Column("train loss", number=True),
            Column("eval loss", number=True),
            Column("stock prints", number=True),
            Column("bad batches", number=True),
            Column("dead rows", number=True),
            Column("where, or how far off", minor=True),
        ),
        rows=tuple(_loss_row(one) for one in results[: limits.rows]),
        left_out=max(0, len(results) - limits.rows),
    )


def _loss_row(result: Result) -> tuple[Item, ...]:
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
        Item(result.cell.padding_side),
        Item(f"{result.cell.attn_implementation} + {result.cell.trainer}"),
        from_mark(mark([result])),
        _loss(train[-1] if train else None),
        _loss(measured.eval_loss),
        Item(
            figures.loss(measured.stock_eval_loss) + (" (hides it)" if hidden else ""),
            "bad" if hidden else "plain",
            _finite(measured.stock_eval_loss),
        ),
        Item(f"{bad} of {batches}", "bad" if bad else "plain", float(bad)),
        Item(f"{measured.dead_rows:,}", "plain", float(measured.dead_rows)),
        Item(_remark(result)),
    )


def _loss(value: float | None) -> Item:
    finite = value is None or math.isfinite(value)
    return Item(figures.loss(value), "plain" if finite else "bad", _finite(value))


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.inf


def _remark(result: Result) -> str:
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
