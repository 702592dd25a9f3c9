"""Whether a gate trips, judged in each environment by itself: a ratio across two machines says nothing.

A number that is not there, or not a number, never passes quietly: the gate is then undecided.
"""

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mpsdiag.benching.gates.gate import MEASURES, AnyGate, CompareGate, Gate, Term
from mpsdiag.benching.journal.pooling import Pool, PooledCell, in_common
from mpsdiag.benching.journal.record import BAD_ENDS, FINDINGS
from mpsdiag.scenario.scenario import Scenario
from mpsdiag.statistics import ratio_of_rounds
from mpsdiag.words import count

_COMPARE: Final[Mapping[str, Callable[[float, float], bool]]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}

_ROUNDS: Final = {"train_time": "train_rounds", "eval_time": "eval_rounds"}

Cells = Mapping[Scenario, PooledCell]
"""The cells of one environment."""


@dataclass(frozen=True)
class Judgement:
    """What a gate found: it tripped, it held, or (`tripped` is None) it could not be decided; with the sentence."""

    gate: Gate
    tripped: bool | None
    sentence: str

    @property
    def passed(self) -> bool:
        """Whether it held; an undecided gate did not."""
        return self.tripped is False

    def __str__(self) -> str:
        word = {True: "tripped", False: "held", None: "undecided, taken as tripped"}[self.tripped]
        return f"gate {word}: {self.sentence}"


def judge(gate: Gate, pool: Pool) -> Judgement:
    """Decide a gate."""
    found = [(f" [{place.label}]" if len(pool.places) > 1 else "", cells) for place, cells in pool.by_place()]
    tripped, sentence = _any(gate, found) if isinstance(gate, AnyGate) else _compare(gate, found)
    return Judgement(gate, tripped, f"{gate.text}: {sentence}")


def concerns(gate: Gate, cells: Sequence[Scenario]) -> bool:
    """Whether there are cells that a gate is about: one that it selects, or a pair that it compares."""
    if isinstance(gate, AnyGate):
        return any(map(gate.selector.takes, cells))
    return any(True for _ in _pairs(gate, cells))


def _any(gate: AnyGate, places: Sequence[tuple[str, Cells]]) -> tuple[bool | None, str]:
    wanted = BAD_ENDS if gate.status == "bad" else {gate.status}
    asked = [
        (f"{cell.title}{label}", result.statuses)
        for label, cells in places
        for cell, result in cells.items()
        if gate.selector.takes(cell)
    ]
    hits = [name for name, statuses in asked if statuses & wanted]
    of = count(len(asked), "cell")
    if hits:
        return True, f"{len(hits)} of {of}, the first {hits[0]}"
    silent = sum(statuses.isdisjoint(FINDINGS) for _, statuses in asked)
    if silent == len(asked) and not wanted.isdisjoint(FINDINGS):
        return None, f"none of {of} finished, so this cannot be decided"
    return False, f"0 of {of}{f', {silent} of which did not finish' if silent else ''}"


def _compare(gate: CompareGate, places: Sequence[tuple[str, Cells]]) -> tuple[bool | None, str]:
    unknown: list[str] = []
    held = 0
    ran = [(label, {cell: one for cell, one in cells.items() if one.status != "skip"}) for label, cells in places]
    for left, right in _pairs(gate, list(dict.fromkeys(cell for _, cells in ran for cell in cells))):
        name = next(cell.title for cell in (left, right) if cell is not None)
        known = [(label, pair) for label, cells in ran if (pair := _numbers(gate, left, right, cells)) is not None]
        if not known:
            unknown.append(f"a number is missing ({name})")
        for label, (one, other) in known:
            what = f"{one:.6g} against {other:.6g} ({name}){label}"
            if math.isnan(one) or math.isnan(other):
                unknown.append(what)
            elif _COMPARE[gate.sign](one, other):
                return True, what
            else:
                held += 1
    if unknown:
        return None, f"{unknown[0]}, so this cannot be decided"
    if not held:
        return None, "no two cells of the results can be compared by it"
    return False, f"true of none of {held}"


def _numbers(
    gate: CompareGate, left: Scenario | None, right: Scenario | None, cells: Cells
) -> tuple[float, float] | None:
    """What the two sides of a comparison come to in one environment; None where that does not know."""
    one, other = _value(gate.left, left, cells), _value(gate.right, right, cells)
    if one is None or other is None:
        return None
    name = _ROUNDS.get(gate.left.measure)
    if name and left is not None and right is not None and gate.left.measure == gate.right.measure:
        ours, theirs = in_common(getattr(cells[left], name), getattr(cells[right], name))
        if ours:  # times are compared round by round, as in the report
            one = ratio_of_rounds(ours, theirs) * other
    return gate.left.factor * one, gate.right.factor * other


def _value(term: Term, cell: Scenario | None, cells: Cells) -> float | None:
    if cell is None:
        return 1.0
    value = MEASURES[term.measure](cells[cell]) if cell in cells else None
    return None if value is None else float(value)


def _pairs(gate: CompareGate, cells: Sequence[Scenario]) -> Iterable[tuple[Scenario | None, Scenario | None]]:
    """Pairs of cells that agree on every axis the selectors do not name; None stands for a plain number."""
    left, right = gate.left.selector, gate.right.selector
    ours = [cell for cell in cells if left is not None and left.takes(cell)]
    theirs = [cell for cell in cells if right is not None and right.takes(cell)]
    if left is None or right is None:
        yield from ((cell, None) for cell in ours)
        yield from ((None, cell) for cell in theirs)
        return
    for one, other in itertools.product(ours, theirs):
        free = left.axes(one) | right.axes(other)
        if all(getattr(one, name) == getattr(other, name) for name, _ in one if name not in free):
            yield one, other
