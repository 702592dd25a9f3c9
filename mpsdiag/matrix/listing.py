"""What `bench --dry-run` shows: the cells, those that cannot run here and why, and how long it will take."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mpsdiag.matrix.estimate import in_words
from mpsdiag.matrix.record import Cell
from mpsdiag.matrix.session import Session
from mpsdiag.serialization import dumps

SCHEMA = 1


def as_text(session: Session) -> str:
    """One line a cell with the axes that vary, then the sums."""
    plan = session.plan
    cells = [*plan.cells, *(skipped.cell for skipped in plan.skipped)]
    names = [name for name in Cell.model_fields if len({getattr(cell, name) for cell in cells}) > 1] or [
        "model"
    ]
    widths = {name: max(len(name), *(len(_word(cell, name)) for cell in cells)) for name in names}
    lines = ["  ".join(name.ljust(widths[name]) for name in names)]
    lines += [
        "  ".join(_word(cell, name).ljust(widths[name]) for name in names).rstrip() for cell in plan.cells
    ]
    for reason, number in Counter(skipped.reason for skipped in plan.skipped).items():
        lines.append(f"skip ({number}): {reason}")
    least, most = session.seconds()
    time = in_words(least) if in_words(least) == in_words(most) else f"{in_words(least)} to {in_words(most)}"
    rule = session.request.spec.rule
    rounds = f"{rule.rounds}" if rule.rounds == rule.most else f"{rule.rounds} to {rule.most}"
    legs = f"a verdict and {rounds} timing rounds each" if rule.rounds else "verdicts only"
    lines.append(f"{len(plan.cells)} cells, {len(plan.skipped)} skipped; {legs}; about {time}.")
    return "\n".join(lines)


def as_document(session: Session) -> str:
    """The same as one JSON document."""
    least, most = session.seconds()
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "cells": [cell.model_dump() for cell in session.plan.cells],
        "skipped": [{"cell": one.cell.model_dump(), "reason": one.reason} for one in session.plan.skipped],
        "seconds": {"least": least, "most": most},
    }
    return dumps(document, indent=1)


def _word(cell: Cell, name: str) -> str:
    value = getattr(cell, name)
    return "-" if value is None else str(value)
