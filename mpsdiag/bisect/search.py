"""The search as pure functions of the known outcomes: which release to test next, or the bracket that was found.

Releases are numbers from 0 (the oldest) to `total - 1`. Nothing is remembered between calls: `decide` replays the
outcomes so far, so a resumed search asks exactly what an uninterrupted one would have asked.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Outcome = Literal["good", "bad", "skip"]
Find = Literal["break", "fix"]
_OTHER: Final[dict[str, Outcome]] = {"good": "bad", "bad": "good"}


@dataclass(frozen=True)
class Ask:
    """Test this release next; at most `left` tries, including this one, are needed if nothing is skipped."""

    number: int
    left: int


@dataclass(frozen=True)
class Bracket:
    """The outcome changes between `before` and `after`; no release between them could be tested."""

    find: Find
    before: int
    after: int


@dataclass(frozen=True)
class SameEnds:
    """Both ends have this outcome, so there is nothing to search."""

    outcome: Outcome


@dataclass(frozen=True)
class OpposedEnds:
    """The ends differ in the opposite direction to the one requested."""

    found: Find


@dataclass(frozen=True)
class UntestableEnd:
    """The release at one end could not be tested."""

    number: int


Decision = Ask | Bracket | SameEnds | OpposedEnds | UntestableEnd


def decide(total: int, outcomes: Mapping[int, Outcome], find: Find | None = None) -> Decision:
    """Which of two or more releases to test next, or what was found; without `find` the ends decide."""
    first, last = 0, total - 1
    halvings = _halvings(last - first)
    for number, left in ((first, 2), (last, 1)):
        if number not in outcomes:
            return Ask(number, left + halvings)
        if outcomes[number] == "skip":
            return UntestableEnd(number)
    start = outcomes[first]
    if outcomes[last] == start:
        return SameEnds(start)
    found: Find = "break" if start == "good" else "fix"
    if find not in {None, found}:
        return OpposedEnds(found)
    low, high = first, last
    while True:
        middle = _middle(low, high, outcomes)
        if middle is None:
            return Bracket(found, low, high)
        if middle not in outcomes:
            return Ask(middle, _halvings(high - low))
        if outcomes[middle] == start:
            low = middle
        else:
            high = middle


def ahead(total: int, outcomes: Mapping[int, Outcome], asked: int, find: Find | None = None) -> list[int]:
    """List the one or two releases that may come after `asked`, the likelier first.

    The second end always follows the first; then the middle is the other one.
    """
    found: dict[int, None] = {}
    for outcome in _OTHER:
        known: dict[int, Outcome] = {**outcomes, asked: _OTHER[outcome]}
        step = decide(total, known, find)
        if isinstance(step, Ask):
            found[step.number] = None
            if step.number == total - 1:
                beyond = decide(total, {**known, step.number: _OTHER[known[0]]})
                found.update({beyond.number: None} if isinstance(beyond, Ask) else {})
    return list(found)


def untestable(bracket: Bracket) -> range:
    """The numbers inside a bracket, all of which were skipped."""
    return range(bracket.before + 1, bracket.after)


def _middle(low: int, high: int, outcomes: Mapping[int, Outcome]) -> int | None:
    """The number to test between two known ones: the middle of the longest run without a skipped release.

    It is away from skipped ones, because releases that cannot be tested tend to be neighbours.
    """
    edges = [low, *(n for n in range(low + 1, high) if outcomes.get(n) == "skip"), high]
    before, after = max(itertools.pairwise(edges), key=lambda run: run[1] - run[0])
    return None if after - before < 2 else (before + after) // 2


def _halvings(gaps: int) -> int:
    return math.ceil(math.log2(gaps))
