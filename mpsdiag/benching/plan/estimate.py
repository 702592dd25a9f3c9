"""How long a matrix will take: from what its journal has already, or from rough figures of built-in models."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mpsdiag.benching.journal.record import Record
from mpsdiag.benching.run.launch import StartMethod
from mpsdiag.benching.run.rounds import StopRule, baselines, timings, wanted
from mpsdiag.scenario.scenario import Scenario
from mpsdiag.statistics import median

# Seconds of one leg of a built-in model on two CPU cores, and of starting a fresh interpreter with its imports.
VERDICT, TIMING, FRESH = 1.5, 0.6, 5.0

Found = Mapping[Scenario, Mapping[int, Record]]
"""The rounds of each cell that are in the journal and are not run again."""


@dataclass(frozen=True)
class Work:
    """What is left to run: verdicts, and timing rounds of all cells together, at least and at most.

    `done` counts the rounds of these cells that the journal has already.
    """

    verdicts: int = 0
    least: int = 0
    most: int = 0
    done: int = 0

    def __bool__(self) -> bool:
        return self.verdicts > 0 or self.most > 0


def remaining(cells: Sequence[Scenario], rule: StopRule, baseline: str, found: Found) -> Work:
    """What a run will do, as far as it can be foreseen: which ratios will be precise early cannot."""
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


def in_words(seconds: float) -> str:
    """A duration as people say it: `40 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
