"""The report as one JSON document, for scripts: the verdicts, and every cell."""

import json
from typing import Any

from mpsdiag.benching.journal.pooling import PooledCell
from mpsdiag.reporting.story.changes import Changes
from mpsdiag.reporting.story.figures import mark
from mpsdiag.reporting.story.ranking import CostRow
from mpsdiag.reporting.story.report import Report, Scene
from mpsdiag.serialization import dumps, jsonable

SCHEMA = 2
_SETBACK = {"round", "status", "reason", "signal", "log_tail"}
_STEPS = ("eval_step", "train_step", "eval_ratio", "train_ratio")
_COST = ("rank", "baseline", *_STEPS, "tokens_per_second", "train_tokens_per_second")
_TOKENS = ("eval_tokens", "eval_pads", "train_tokens", "train_pads")


def render(report: Report) -> str:
    """Write the document; durations in seconds, memory in bytes, losses in nats, NaN as the string "nan"."""
    rest = document(report, cells=False)
    scenes = rest.pop("scenes")
    # One line a cell, joined once: a large document is never there twice.
    parts = [_text(rest)[:-1], ', "scenes": [']
    for scene, seen in zip(scenes, report.scenes, strict=True):
        parts += ["" if seen is report.scenes[0] else ",", "\n", _text(scene)[:-1], ', "cells": [']
        for number, cell in enumerate(_cell(*row) for panel in seen.panels for row in panel.rows):
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
