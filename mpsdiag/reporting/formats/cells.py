"""Every cell as plain data: the JSON document, a pandas DataFrame for a notebook, and the files made of them."""

from __future__ import annotations

import contextlib
import json
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

from mpsdiag.escape import cap, one_line
from mpsdiag.reporting.story.figures import mark
from mpsdiag.reporting.story.report import Report, Scene
from mpsdiag.scenario.scenario import Measured
from mpsdiag.serialization import dumps, jsonable

if TYPE_CHECKING:
    import pandas as pd

    from mpsdiag.benching.journal.pooling import PooledCell
    from mpsdiag.reporting.story.changes import Changes
    from mpsdiag.reporting.story.ranking import CostRow

SCHEMA = 2
_SETBACK = {"round", "status", "reason", "signal", "log_tail"}
_STEPS = ("eval_step", "train_step", "eval_ratio", "train_ratio")
_FIGURES = ("rank", "tokens_per_second", "train_tokens_per_second")
_TOKENS = ("eval_tokens", "eval_pads", "train_tokens", "train_pads")
_COST = ("rank", "baseline", *_STEPS, "tokens_per_second", "train_tokens_per_second")
# A spreadsheet takes a text that begins with one of these for a formula, and runs it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def json_text(report: Report) -> str:
    """Write the document; durations in seconds, memory in bytes, losses in nats, NaN as the string "nan"."""
    rest = document(report, cells=False)
    scenes = rest.pop("scenes")
    # One line for each cell, joined once, so that a large document is never in memory twice.
    parts = [_text(rest)[:-1], ', "scenes": [']
    for scene, seen in zip(scenes, report.scenes, strict=True):
        parts += ["" if seen is report.scenes[0] else ",", "\n", _text(scene)[:-1], ', "cells": [']
        for number, cell in enumerate(_cell(*row) for panel in seen.panels for row in panel.rows):
            parts += [",\n" if number else "\n", _text(cell)]
        parts.append("\n]}")
    parts.append("]}\n")
    return "".join(parts)


def _text(value: dict[str, Any]) -> str:
    with contextlib.suppress(ValueError):  # a NaN somewhere
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, default=jsonable)
        if text.isprintable():
            return text
    # Half a character, which no file can hold, is spelled as JSON spells it.
    return dumps(value).encode("utf-8", "backslashreplace").decode("utf-8")


def document(report: Report, *, cells: bool = True) -> dict[str, Any]:
    """Make the document as plain data."""
    return {
        "schema": SCHEMA,
        "headline": report.headline,
        "created": report.created,
        "mpsdiag": report.version,
        "baseline": {"attention": report.baseline, "trainer": "standard"},
        "commands": report.commands,
        "statuses": report.statuses,
        "scenes": [_scene(scene, cells=cells) for scene in report.scenes],
        "environments": {place.letter: dict(place.facts) for place in report.places},
        "notes": report.notes,
        "comparison": None if report.changes is None else _changes(report.changes),
    }


def _changes(changes: Changes) -> dict[str, Any]:
    return {
        "sentence": changes.sentence,
        "environments": [
            {"new": pair.new.letter, "old": pair.old.label, "differences": pair.differences} for pair in changes.pairs
        ],
        "cells": [
            {
                "change": row.change,
                "cell": row.cell,
                "new": row.new and row.new.status,
                "old": row.old and row.old.status,
                **{name: getattr(row, name) for name in ("eval_ratio", "eval_p", "train_ratio", "train_p")},
            }
            for row in changes.rows
        ],
    }


def _scene(scene: Scene, *, cells: bool) -> dict[str, Any]:
    made: dict[str, Any] = {
        "environment": scene.place.letter,
        "device": scene.device,
        "emulated": scene.emulated,
        "verdict": scene.verdict.word,
        "sentence": scene.verdict.sentence,
        "recommendation": scene.verdict.recommendation,
        "fixes": scene.verdict.fixes,
    }
    if cells:
        made["cells"] = [_cell(*row) for panel in scene.panels for row in panel.rows]
    return made


def _cell(result: PooledCell, cost: CostRow | None) -> dict[str, Any]:
    return {
        "key": result.key,
        "cell": result.cell.model_dump(),
        "status": result.status,
        "mark": mark([result]).text,
        "reason": result.reason,
        "rounds": result.rounds,
        "setbacks": [one.model_dump(include=_SETBACK) for one in result.setbacks],
        "measured": None if result.measured is None else result.measured.model_dump(),
        "timing": cost
        and {
            "device": result.timing.device,
            "emulated": False,
            **{name: getattr(cost, name) for name in _COST},
            **{name: getattr(result.timing, name) for name in _TOKENS},
        },
        "peak_memory": result.peak_memory,
    }


def frame(report: Report) -> pd.DataFrame:
    """Make the table of all cells, in the order of the report: scene by scene, panel by panel.

    Durations are in seconds, memory in bytes, losses in nats. The columns are Arrow's: a loss that is NaN is a finding
    and stays NaN, one that was not measured is missing (`<NA>`), and a count stays a whole number beside missing ones.
    """
    import pandas as pd
    import pyarrow as pa

    columns: dict[str, list[Any]] = {}
    panels = ((scene, panel) for scene in report.scenes for panel in scene.panels)
    for row in (_row(scene, result, cost) for scene, panel in panels for result, cost in panel.rows):
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return pd.DataFrame(
        {name: pd.arrays.ArrowExtensionArray(pa.array(_held(columns.pop(name)))) for name in [*columns]}
    )


def _held(values: list[Any]) -> list[Any]:
    """A column as Arrow holds it; whole numbers of more than 64 bits, which no run gives, become floats."""
    largest = max((abs(value) for value in values if isinstance(value, int)), default=0)
    if largest < 2**63:
        return values
    return [float(min(value, 10**300)) if isinstance(value, int) else value for value in values]


def csv_text(report: Report) -> str:
    """Write the table as CSV; texts are quoted, and a missing value is an empty field."""
    import pyarrow as pa
    from pyarrow import csv

    table = frame(report)
    if table.empty:
        return ""
    stream = BytesIO()
    # Arrow takes a tenth of the time of DataFrame.to_csv.
    csv.write_csv(pa.Table.from_pandas(table, preserve_index=False), stream)
    return stream.getvalue().decode()


def parquet(report: Report) -> bytes:
    """Write the table as Parquet."""
    stream = BytesIO()
    frame(report).to_parquet(stream, index=False)
    return stream.getvalue()


def safe(text: str) -> str:
    """Put a text on one line and stop a spreadsheet from running it."""
    # Names repeat from row to row; long error texts do not, and are not worth caching.
    return _remembered(text) if len(text) < 300 else _clean(text)


def _clean(text: str) -> str:
    text = one_line(text, 1000)
    return cap(f"'{text}", 1000) if text.startswith(_FORMULA) else text


_remembered = lru_cache(maxsize=1000)(_clean)


def _row(scene: Scene, result: PooledCell, cost: CostRow | None) -> dict[str, Any]:
    axes = dict(vars(result.cell))
    releases = axes.pop("environment")  # the letter has that name already
    row: dict[str, Any] = {
        "environment": result.place.letter,
        "emulated": scene.emulated or "",
        **axes,
        "release_environment": releases,
        "key": result.key,
        "status": result.status,
        "mark": mark([result]).text,
        "reason": result.reason or "",
        "rounds": result.rounds,
        "rounds_not_finished": len(result.setbacks),
        **_measured(result.measured),
        "timed_on": result.timing.device,
        "peak_memory": result.peak_memory,
        **_timed(cost),
    }
    return {name: safe(value) if isinstance(value, str) else value for name, value in row.items()}


def _measured(measured: Measured | None) -> dict[str, Any]:
    if measured is None:
        return _NOT_MEASURED
    return {
        "eval_loss": measured.eval_loss,
        "stock_eval_loss": measured.stock_eval_loss,
        "loss_moved_by": measured.loss_moved_by,
        "last_train_loss": measured.train_losses[-1] if measured.train_losses else None,
        "last_grad_norm": measured.grad_norms[-1] if measured.grad_norms else None,
        "real_tokens": measured.real_tokens,
        "pad_tokens": measured.pad_tokens,
        "eval_batches_run": len(measured.eval_losses),
        "nonfinite_batches": measured.nonfinite_batches,
        "dead_rows": measured.dead_rows,
        "max_abs_logit_diff": measured.max_abs_logit_diff,
        "bound": measured.bound,
        "invariance_diff": measured.invariance_diff,
    }


_NOT_MEASURED = dict.fromkeys(_measured(Measured()))


_STEP, _RATIO = ("value", "low", "high", "mad", "n"), ("value", "low", "high", "p")
_ESTIMATES = [
    (name, part, name if part == "value" else f"{name}_{part}")
    for name in _STEPS
    for part in (_STEP if name.endswith("step") else _RATIO)
]


def _timed(cost: CostRow | None) -> dict[str, Any]:
    if cost is None:
        return _NOT_TIMED
    row = {name: getattr(cost, name) for name in _FIGURES}
    row.update({name: getattr(cost.result.timing, name) for name in _TOKENS})
    row.update({column: getattr(getattr(cost, name), part, None) for name, part, column in _ESTIMATES})
    return row


_NOT_TIMED = dict.fromkeys((*_FIGURES, *_TOKENS, *(column for _, _, column in _ESTIMATES)))
