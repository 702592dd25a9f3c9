"""The report as one JSON document, for scripts: the verdicts, and every cell."""

from __future__ import annotations

import json
from typing import Any

from mpsdiag.reporting.story.changes import Changes
from mpsdiag.reporting.story.marks import mark
from mpsdiag.reporting.story.pooling import PooledCell
from mpsdiag.reporting.story.ranking import CostRow
from mpsdiag.reporting.story.report import Panel, Report, Scene
from mpsdiag.serialization import dumps, jsonable

SCHEMA = 2


def render(report: Report) -> str:
    """Write the document; durations in seconds, memory in bytes, losses in nats, NaN as the string "nan"."""
    rest = document(report, cells=False)
    scenes = rest.pop("scenes")
    # One line a cell, joined once: a large document is never there twice.
    parts = [_text(rest)[:-1], ', "scenes": [']
    for scene, seen in zip(scenes, report.scenes, strict=True):
        parts += ["" if seen is report.scenes[0] else ",", "\n", _text(scene)[:-1], ', "cells": [']
        for number, cell in enumerate(cell for panel in seen.panels for cell in _cells(panel)):
            parts += [",\n" if number else "\n", _text(cell)]
        parts.append("\n]}")
    parts.append("]}\n")
    return "".join(parts)


def _text(value: dict[str, Any]) -> str:
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, default=jsonable)
    except ValueError:  # a NaN somewhere
        text = dumps(value)
    # Half a character, which no file can hold, is spelled as JSON spells it.
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


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
                "eval_ratio": row.eval_ratio,
                "eval_p": row.eval_p,
                "train_ratio": row.train_ratio,
                "train_p": row.train_p,
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
        made["cells"] = [cell for panel in scene.panels for cell in _cells(panel)]
    return made


def _cells(panel: Panel) -> list[dict[str, Any]]:
    costs = {id(row.result): row for table in panel.costs for row in table.rows}
    return [_cell(result, costs.get(id(result))) for result in panel.results]


def _cell(result: PooledCell, cost: CostRow | None) -> dict[str, Any]:
    return {
        "key": result.key,
        "cell": result.cell.model_dump(),
        "status": result.status,
        "mark": mark([result]).text,
        "reason": result.reason,
        "rounds": result.rounds,
        "setbacks": result.setbacks,
        "measured": None if result.measured is None else result.measured.model_dump(),
        "timing": None if cost is None else _timing(result, cost),
        "peak_memory": result.peak_memory,
    }


def _timing(result: PooledCell, cost: CostRow) -> dict[str, Any]:
    claims = cost.rank is not None  # a ratio is a claim about a fix: a cell that is not right makes none
    return {
        "device": result.timed_on,
        "emulated": False,
        "rank": cost.rank,
        "baseline": cost.baseline,
        "eval_step": cost.eval_step,
        "train_step": cost.train_step,
        "eval_ratio": cost.eval_ratio if claims else None,
        "train_ratio": cost.train_ratio if claims else None,
        "tokens_per_second": cost.tokens_per_second,
        "train_tokens_per_second": cost.train_tokens_per_second,
        "eval_tokens": result.eval_tokens,
        "eval_pads": result.eval_pads,
        "train_tokens": result.train_tokens,
        "train_pads": result.train_pads,
    }
