"""What `bench --dry-run` shows: the cells, those that cannot run here and why, and how long it will take."""

from collections import Counter
from typing import Any

from mpsdiag.benching.plan.estimate import in_words
from mpsdiag.benching.run.bench import Session
from mpsdiag.scenario.scenario import Scenario
from mpsdiag.serialization import dumps
from mpsdiag.words import count

SCHEMA = 1


def as_text(session: Session) -> str:
    """One line a cell with the axes that vary, then the sums."""
    plan = session.plan
    if plan.empty:
        return f"0 cells, 0 skipped; {plan.empty}."
    cells = plan.all_cells
    names = [name for name in Scenario.model_fields if len({getattr(cell, name) for cell in cells}) > 1] or ["model"]
    widths = {name: max(len(name), *(len(_word(cell, name)) for cell in cells)) for name in names}
    lines = ["  ".join(name.ljust(widths[name]) for name in names)]
    lines += ["  ".join(_word(cell, name).ljust(widths[name]) for name in names).rstrip() for cell in plan.cells]
    for reason, number in Counter(skipped.reason for skipped in plan.skipped).items():
        lines.append(f"skip ({number}): {reason}")
    lines.append(_sums(session))
    return "\n".join(lines)


def _sums(session: Session) -> str:
    """How many cells, how much of each, and how long that takes."""
    plan, rule, (work, *seconds) = session.plan, session.request.spec.rule, session.forecast()
    rounds = count(rule.most, "timing round")
    rounds = rounds if rule.rounds == rule.most else f"{rule.rounds} to {rounds}"
    legs = f"a verdict and {rounds} each" if rule.rounds else "verdicts only"
    found = f"the journal has {work.done} of these rounds already; " if work.done else ""
    time = f"about {' to '.join(dict.fromkeys(map(in_words, seconds)))}" if work else "nothing is left to run"
    return f"{count(len(plan.cells), 'cell')}, {len(plan.skipped)} skipped; {legs}; {found}{time}."


def as_document(session: Session) -> str:
    """The same as one JSON document."""
    work, least, most = session.forecast()
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "cells": [cell.model_dump() for cell in session.plan.cells],
        "skipped": [{"cell": one.cell.model_dump(), "reason": one.reason} for one in session.plan.skipped],
        "seconds": {"least": least, "most": most},
        "rounds_in_journal": work.done,
    }
    return dumps(document, indent=1)


def _word(cell: Scenario, name: str) -> str:
    value = getattr(cell, name)
    return "-" if value is None else str(value)
