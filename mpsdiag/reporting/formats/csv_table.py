"""Every cell as one row of a table, for a spreadsheet or a notebook."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mpsdiag.reporting.formats.escape import cap, one_line
from mpsdiag.reporting.story.marks import mark
from mpsdiag.reporting.story.story import Scene, Story
from mpsdiag.scenario.scenario import Measured
from mpsdiag.serialization import jsonable

if TYPE_CHECKING:
    import pandas as pd

    from mpsdiag.reporting.story.cost import CostRow, Estimate
    from mpsdiag.reporting.story.pool import Result

# The other texts are words of ours.
_FREE_TEXTS = (
    "model",
    "dataset",
    "eval_dataset",
    "device",
    "emulate",
    "emulated",
    "key",
    "reason",
    "timed_on",
    "files",
)
_COUNTS = (
    "emulate_macos",
    "pad_to_multiple_of",
    "eval_batches_run",
    "nonfinite_batches",
    "dead_rows",
    "rank",
    "peak_memory",
    "eval_step_n",
    "train_step_n",
    "threads",
    "real_tokens",
    "pad_tokens",
    "eval_tokens",
    "eval_pads",
    "train_tokens",
    "train_pads",
)

# A spreadsheet takes a text that begins so for a formula, and runs it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def render(story: Story) -> str:
    """Write all cells as CSV, one row each; durations in seconds, memory in bytes, losses in nats.

    Args:
        story: What to write.
    """
    rows = _rows(story)
    first = next(rows, None)
    if first is None:
        return ""
    stream = io.StringIO()
    # Row by row: a pandas table of all of them would be as large as the journal again, and take twice as long.
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(first)
    writer.writerow(first.values())
    writer.writerows(row.values() for row in rows)
    return stream.getvalue()


def frame(story: Story) -> pd.DataFrame:
    """Make the table of all cells, in the order of the report: scene by scene, panel by panel."""
    import pandas as pd

    table = pd.DataFrame(list(_rows(story)))
    # A number that is missing somewhere would make a whole column of counts a column of fractions.
    return table.astype({name: "Int64" for name in _COUNTS if name in table})


def _rows(story: Story) -> Iterator[dict[str, Any]]:
    for scene in story.scenes:
        for panel in scene.panels:
            costs = {id(row.result): row for table in panel.costs for row in table.rows}
            for result in panel.results:
                yield _row(scene, result, costs.get(id(result)))


def safe(text: str) -> str:
    """Put a text on one line and stop a spreadsheet from running it."""
    # Names repeat from row to row; a megabyte of error text does not, and is not worth keeping.
    return _remembered(text) if len(text) < 300 else _clean(text)


def _clean(text: str) -> str:
    text = one_line(text, 1000)
    return cap(f"'{text}", 1000) if text.startswith(_FORMULA) else text


_remembered = lru_cache(maxsize=1000)(_clean)


def _row(scene: Scene, result: Result, cost: CostRow | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "environment": result.place.letter,
        "emulated": scene.emulated or "",
        **vars(result.cell),
        "key": result.key,
        "status": result.status,
        "mark": mark([result]).text,
        "reason": result.reason or "",
        "rounds": result.rounds,
        "rounds_not_finished": len(result.setbacks),
        **(_NOT_MEASURED if result.measured is None else _measured(result.measured)),
        "timed_on": result.timed_on or "",
        "peak_memory": result.peak_memory,
        **(_NOT_TIMED if cost is None else _timed(cost)),
    }
    for name in _FREE_TEXTS:
        if row[name]:
            row[name] = safe(row[name])
    return row


def _measured(measured: Measured) -> dict[str, Any]:
    return {
        "eval_loss": _loss(measured.eval_loss),
        "stock_eval_loss": _loss(measured.stock_eval_loss),
        "loss_moved_by": _loss(measured.loss_moved_by),
        "last_train_loss": _loss(measured.train_losses[-1] if measured.train_losses else None),
        "last_grad_norm": _loss(measured.grad_norms[-1] if measured.grad_norms else None),
        "real_tokens": measured.real_tokens,
        "pad_tokens": measured.pad_tokens,
        "eval_batches_run": len(measured.eval_losses),
        "nonfinite_batches": measured.nonfinite_batches,
        "dead_rows": measured.dead_rows,
        "max_abs_logit_diff": _loss(measured.max_abs_logit_diff),
        "bound": _loss(measured.bound),
    }


def _loss(value: float | None) -> Any:
    """A loss that is NaN is a finding, and not the empty field of a number that was not measured."""
    return value if value is None or math.isfinite(value) else jsonable(value)


def _timed(cost: CostRow) -> dict[str, Any]:
    # A ratio is a claim about a fix: a cell that is not right makes none.
    claims = cost.rank is not None
    return {
        "rank": cost.rank,
        "tokens_per_second": cost.tokens_per_second,
        "train_tokens_per_second": cost.train_tokens_per_second,
        "eval_tokens": cost.result.eval_tokens,
        "eval_pads": cost.result.eval_pads,
        "train_tokens": cost.result.train_tokens,
        "train_pads": cost.result.train_pads,
        **_step("eval_step", cost.eval_step),
        **_step("train_step", cost.train_step),
        **_ratio("eval_ratio", cost.eval_ratio if claims else None),
        **_ratio("train_ratio", cost.train_ratio if claims else None),
    }


def _step(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    spread, number = (estimate.mad, estimate.n) if estimate else (None, 0)
    return {**_estimate(name, estimate), f"{name}_mad": spread, f"{name}_n": number}


def _ratio(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    return {**_estimate(name, estimate), f"{name}_p": estimate.p if estimate else None}


def _estimate(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    if estimate is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


_NOT_MEASURED = dict.fromkeys(_measured(Measured()))
_NOT_TIMED = dict.fromkeys(
    (
        "rank",
        "tokens_per_second",
        "train_tokens_per_second",
        *(f"{kind}_{what}" for kind in ("eval", "train") for what in ("tokens", "pads")),
        *(f"{kind}_step{part}" for kind in ("eval", "train") for part in ("", "_low", "_high", "_mad", "_n")),
        *(f"{kind}_ratio{part}" for kind in ("eval", "train") for part in ("", "_low", "_high", "_p")),
    )
)
