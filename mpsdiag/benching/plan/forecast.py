"""The output of `bench --dry-run`: the cells, those that cannot run here and why, and the expected time."""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpsdiag.benching.journal.record import Record
from mpsdiag.benching.run.bench import Session
from mpsdiag.benching.run.launch import StartMethod
from mpsdiag.benching.run.rounds import StopRule, baselines, timings, wanted
from mpsdiag.scenario.scenario import Scenario
from mpsdiag.serialization import dumps
from mpsdiag.statistics import median
from mpsdiag.words import count

SCHEMA = 1

# Seconds of one leg of a built-in model on two CPU cores, and of starting a fresh interpreter with its imports.
VERDICT, TIMING, FRESH = 1.5, 0.6, 5.0

Found = Mapping[Scenario, Mapping[int, Record]]
"""The rounds of each cell that are in the journal and will not be run again."""


@dataclass(frozen=True)
class Work:
    """What is left to run: verdicts, and timing rounds of all cells together, at least and at most.

    `done` counts the rounds of these cells that the journal already has.
    """

    verdicts: int = 0
    least: int = 0
    most: int = 0
    done: int = 0

    def __bool__(self) -> bool:
        return self.verdicts > 0 or self.most > 0


def remaining(cells: Sequence[Scenario], rule: StopRule, baseline: str, found: Found) -> Work:
    """What a run will do, as far as it can be predicted; which ratios become precise early cannot be."""
    partners = baselines(cells, baseline)
    history = {cell: known for cell in cells if (known := timings(found.get(cell, {}))) is not None}
    asked = functools.cache(lambda number: frozenset(wanted(number, history, partners, rule)))
    most_of_one = rule.most if rule.rounds else 0
    verdicts = least = most = 0
    for cell in cells:
        if 0 not in found.get(cell, {}):
            verdicts, least, most = verdicts + 1, least + rule.rounds, most + most_of_one
        elif cell in history:
            done = len(history[cell])
            if done < rule.rounds or cell in asked(done + 1):
                least += max(1, rule.rounds - done)
                most += most_of_one - done
    return Work(verdicts, least, most, sum(map(len, found.values())))


def estimate(
    work: Work, start: StartMethod, records: Iterable[Record] = (), *, jobs: int = 1, machines: int = 1
) -> tuple[float, float]:
    """Seconds that a run takes at least and at most."""
    if not work:
        return 0.0, 0.0
    known = list(records)
    fresh = FRESH if start == "spawn" else 0.0
    verdict = median([one.seconds for one in known if one.round == 0 and one.status != "skip"])
    timing = median([one.seconds for one in known if one.round > 0])
    verdict = VERDICT + fresh if verdict != verdict else verdict  # noqa: PLR0124 - NaN: none is known
    timing = TIMING + fresh if timing != timing else timing  # noqa: PLR0124 - likewise
    boot = FRESH if start == "forkserver" else 0.0
    least, most = (
        boot + (work.verdicts * verdict / jobs + rounds * timing) / machines for rounds in (work.least, work.most)
    )
    return least, most


def forecast(session: Session) -> tuple[Work, float, float]:
    """What will run, and how many seconds it takes at least and at most, judging by the journal if there is one.

    Raises BadInput if the file there is not a journal.
    """
    known, records = session.known()
    spec, cells = session.request.spec, session.plan.cells
    found = {cell: rounds for cell in cells if (rounds := known.rounds(cell))}
    work = remaining(cells, spec.rule, spec.baseline, found)
    options = {"jobs": session.request.jobs, "machines": session.site.machines}
    return work, *estimate(work, session.site.start, records, **options)


def in_words(seconds: float) -> str:
    """A duration as people say it: `40 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def as_text(session: Session) -> str:
    """One line for each cell with the axes that vary, then the totals."""
    plan = session.plan
    if plan.empty:
        return f"0 cells, 0 skipped; {plan.empty}."
    cells = plan.all_cells
    names = [name for name in Scenario.model_fields if len({getattr(cell, name) for cell in cells}) > 1] or ["model"]
    widths = {name: max(len(name), *(len(_word(cell, name)) for cell in cells)) for name in names}
    lines = ["  ".join(name.ljust(widths[name]) for name in names)]
    lines += ["  ".join(_word(cell, name).ljust(widths[name]) for name in names).rstrip() for cell in plan.cells]
    for reason, number in Counter(plan.skipped.values()).items():
        lines.append(f"skip ({number}): {reason}")
    lines.append(_sums(session))
    return "\n".join(lines)


def _sums(session: Session) -> str:
    """How many cells, how much of each, and how long that takes."""
    plan, rule, (work, *seconds) = session.plan, session.request.spec.rule, forecast(session)
    rounds = count(rule.most, "timing round")
    rounds = rounds if rule.rounds == rule.most else f"{rule.rounds} to {rounds}"
    legs = f"a verdict and {rounds} each" if rule.rounds else "verdicts only"
    found = f"the journal already has {work.done} of these rounds; " if work.done else ""
    time = f"about {' to '.join(dict.fromkeys(map(in_words, seconds)))}" if work else "nothing is left to run"
    return f"{count(len(plan.cells), 'cell')}, {len(plan.skipped)} skipped; {legs}; {found}{time}."


def as_document(session: Session) -> str:
    """The same as one JSON document."""
    work, least, most = forecast(session)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "cells": [cell.model_dump() for cell in session.plan.cells],
        "skipped": [{"cell": cell.model_dump(), "reason": why} for cell, why in session.plan.skipped.items()],
        "seconds": {"least": least, "most": most},
        "rounds_in_journal": work.done,
    }
    return dumps(document, indent=1)


def _word(cell: Scenario, name: str) -> str:
    value = getattr(cell, name)
    return "-" if value is None else str(value)
