"""The report as one JSON document, for scripts: the verdicts, and every cell."""

from __future__ import annotations

from typing import Any

from mpsdiag.report.compare import Comparison
from mpsdiag.report.cost import CostRow, Estimate
from mpsdiag.report.marks import mark
from mpsdiag.report.pool import Result
from mpsdiag.report.story import Panel, Scene, Story
from mpsdiag.serialization import dumps

SCHEMA = 1


def render(story: Story) -> str:
    """Write the document; durations in seconds, memory in bytes, losses in nats, NaN as the string "nan"."""
    return dumps(document(story), indent=1) + "\n"


def document(story: Story) -> dict[str, Any]:
    """Make the document as plain data."""
    return {
        "schema": SCHEMA,
        "headline": story.headline,
        "created": story.created,
        "mpsdiag": story.version,
        "baseline": {"attention": story.baseline, "trainer": "standard"},
        "commands": story.commands,
        "statuses": story.statuses,
        "scenes": [_scene(scene) for scene in story.scenes],
        "environments": {place.letter: dict(place.facts) for place in story.places},
        "notes": story.notes,
        "comparison": None if story.comparison is None else _comparison(story.comparison),
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "sentence": comparison.sentence,
        "environments": [
            {"new": pair.new.letter, "old": pair.old.label, "differences": pair.differences}
            for pair in comparison.pairs
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
            for row in comparison.rows
        ],
    }


def _scene(scene: Scene) -> dict[str, Any]:
    return {
        "environment": scene.place.letter,
        "device": scene.device,
        "emulated": scene.emulated,
        "verdict": scene.verdict.word,
        "sentence": scene.verdict.sentence,
        "recommendation": scene.verdict.recommendation,
        "fixes": scene.verdict.fixes,
        "cells": [cell for panel in scene.panels for cell in _cells(panel)],
    }


def _cells(panel: Panel) -> list[dict[str, Any]]:
    costs = {id(row.result): row for table in panel.costs for row in table.rows}
    return [_cell(result, costs.get(id(result))) for result in panel.results]


def _cell(result: Result, cost: CostRow | None) -> dict[str, Any]:
    return {
        "key": result.key,
        "cell": result.cell,
        "status": result.status,
        "mark": mark([result]).text,
        "reason": result.reason,
        "rounds": result.rounds,
        "setbacks": result.setbacks,
        "measured": result.measured,
        "timing": None if cost is None else _timing(result, cost),
        "peak_memory": result.peak_memory,
    }


def _timing(result: Result, cost: CostRow) -> dict[str, Any]:
    return {
        "device": result.timed_on,
        "emulated": False,
        "rank": cost.rank,
        "baseline": cost.baseline,
        "eval_step": cost.eval_step,
        "train_step": cost.train_step,
        "eval_ratio": _claim(cost.eval_ratio, cost),
        "train_ratio": _claim(cost.train_ratio, cost),
        "tokens_per_second": cost.tokens_per_second,
    }


def _claim(ratio: Estimate | None, cost: CostRow) -> Estimate | None:
    """A ratio is a claim about a fix: a cell that is not right makes none."""
    return ratio if cost.rank is not None else None
