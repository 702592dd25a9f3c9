"""Gates: conditions such as `safe_sdpa.eval_time > 1.05 * sdpa.eval_time`, parsed by a small grammar, never by eval.

    gate       = "any" STATUS "in" ( "all" | selector )  |  term COMPARE term
    term       = [ NUMBER "*" ] selector "." MEASURE     |  NUMBER
    selector   = word { "+" word }
    word       = VALUE                  a text on any axis: attention, trainer, padding, model, dtype, ...
               | AXIS "=" VALUE         a text or a number on this axis; "none" if it has no value
    COMPARE    = ">" | ">=" | "<" | "<="
    NUMBER     = digits, optionally with a minus sign, a fraction and an exponent
    STATUS     = a status of a cell, or "bad" (error, crash, oom, timeout)

A number alone is not a word: 4 may be a batch size, a seed and more. A comparison of two selectors is made for every
pair of cells that agree on all axes the selectors do not name. The gate trips when it is true of any.

Each environment is judged by itself: a ratio across two machines says nothing. A number that is not there, or not a
number, never passes quietly: the gate is then undecided.
"""

import itertools
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, Final

from mpsdiag.benching.journal.pooling import Pool, PooledCell, in_common
from mpsdiag.benching.journal.record import BAD_ENDS, FINDINGS
from mpsdiag.errors import BadInput, nearest
from mpsdiag.scenario.scenario import OLD_NAMES, Scenario
from mpsdiag.statistics import median, ratio_of_rounds
from mpsdiag.words import CELL_STATUSES, count

_MEASURED = ("eval_loss", "nonfinite_batches", "dead_rows", "loss_moved_by", "max_abs_logit_diff", "invariance_diff")
MEASURES: Final[Mapping[str, Callable[[PooledCell], Any]]] = {
    "train_time": lambda cell: median(cell.train_step) if cell.train_step else None,
    "eval_time": lambda cell: median(cell.eval_step) if cell.eval_step else None,
    "memory": attrgetter("peak_memory"),
    **{name: partial(lambda name, cell: getattr(cell.measured, name, None), name) for name in _MEASURED},
}
"""Numbers of a cell: medians of times in seconds, memory in bytes, losses in nats; None if missing."""

_COMPARE: Final = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_STATUSES: Final = (*CELL_STATUSES, "bad")
_ROUNDS: Final = {"train_time": "train_rounds", "eval_time": "eval_rounds"}

Cells = Mapping[Scenario, PooledCell]
"""The cells of one environment."""
_ANY = re.compile(r"any\s+(\S+)\s+in\s+(\S+)")
_SIDES = re.compile(r"(.+?)\s*(>=|<=|>|<)\s*(.+)")
_NUMBER = r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
_TERM = re.compile(rf"(?:(?P<factor>{_NUMBER})\s*\*\s*)?(?P<selector>[\w/:+.=@-]+)\.(?P<measure>[a-z_]+)")
HELP = (
    "Write it like 'safe_sdpa.eval_time > 1.05 * sdpa.eval_time', 'safe_sdpa.loss_moved_by > 0' "
    "or 'any nan in safe_sdpa'."
)


@dataclass(frozen=True)
class Selector:
    """Cells that have each of these words on some axis; all cells if there are no words."""

    words: tuple[str, ...]

    def takes(self, cell: Scenario) -> bool:
        """Whether a cell is selected."""
        return all(_axis_of(word, cell) for word in self.words)

    def axes(self, cell: Scenario) -> set[str]:
        """The axes of a cell that the words are on."""
        return {_axis_of(word, cell) for word in self.words}


@dataclass(frozen=True)
class Term:
    """A number, or a measure of some cells times a number."""

    factor: float
    selector: Selector | None = None
    measure: str = ""


@dataclass(frozen=True)
class AnyGate:
    """Trips when any of the cells has the status; `text` is as the user wrote it."""

    text: str
    status: str
    selector: Selector


@dataclass(frozen=True)
class CompareGate:
    """Trips when the comparison is true of any pair of cells; `text` is as the user wrote it."""

    text: str
    left: Term
    sign: str
    right: Term


Gate = AnyGate | CompareGate


def parse_gate(text: str) -> Gate:
    """Parse a gate. Raises BadInput for anything else, with an example and the nearest word."""
    text = text.strip()
    found = _ANY.fullmatch(text)
    if found:
        status, selector = found.groups()
        if status not in _STATUSES:
            raise BadInput(f"--fail-if '{text}': unknown status '{status}'. {nearest(status, _STATUSES)}")
        return AnyGate(text, status, Selector(()) if selector == "all" else _selector(selector, text))
    sides = _SIDES.fullmatch(text)
    if not sides:
        raise BadInput(f"--fail-if '{text}' is not a gate. {HELP}")
    left, sign, right = sides.groups()
    gate = CompareGate(text, _term(left, text), sign, _term(right, text))
    if gate.left.selector is None and gate.right.selector is None:
        raise BadInput(f"--fail-if '{text}' compares two numbers instead of cells. {HELP}")
    return gate


def require_words(gate: Gate, cells: Sequence[Scenario]) -> None:
    """Make sure, before hours of work, that a gate is about existing cells.

    Raises BadInput if a word is on no axis of any cell, or no cell has all of its words.
    """
    terms = [gate] if isinstance(gate, AnyGate) else [gate.left, gate.right]
    for selector in (term.selector for term in terms if term.selector is not None):
        for word in selector.words:
            if not any(_axis_of(word, cell) for cell in cells):
                raise BadInput(f"--fail-if '{gate.text}': no cell of the matrix has '{word}'. {_hint(word, cells)}")
        if not any(selector.takes(cell) for cell in cells):
            raise BadInput(f"--fail-if '{gate.text}': no cell of the matrix has all of '{'+'.join(selector.words)}'.")


def _term(text: str, gate: str) -> Term:
    if re.fullmatch(_NUMBER, text):
        return Term(_number(text, gate))
    found = _TERM.fullmatch(text)
    if not found:
        raise BadInput(f"--fail-if '{gate}': '{text}' is neither a number nor CELL.MEASURE. {HELP}")
    if found["measure"] not in MEASURES:
        raise BadInput(
            f"--fail-if '{gate}': unknown measure '{found['measure']}'. {nearest(found['measure'], MEASURES)}"
        )
    return Term(_number(found["factor"] or "1", gate), _selector(found["selector"], gate), found["measure"])


def _number(text: str, gate: str) -> float:
    value = float(text)
    if math.isinf(value):  # nothing exceeds infinity, so the gate could never trip
        raise BadInput(f"--fail-if '{gate}': {text} is too large a number.")
    return value


def _selector(text: str, gate: str) -> Selector:
    words = []
    for word in text.split("+"):
        axis, equals, value = word.partition("=")
        axis = OLD_NAMES.get(axis, axis)
        words.append(f"{axis}={value}" if equals else word)
        if not word or (equals and not value):
            raise BadInput(f"--fail-if '{gate}': a word is missing in '{text}'. {HELP}")
        if equals and axis not in Scenario.model_fields:
            raise BadInput(f"--fail-if '{gate}': a cell has no axis '{axis}'. {nearest(axis, Scenario.model_fields)}")
    return Selector(tuple(words))


def _axis_of(word: str, cell: Scenario) -> str:
    """The axis on which a cell has this word; empty if on none."""
    axis, equals, value = word.partition("=")
    if equals:
        return axis if _written(getattr(cell, axis)) == value else ""
    return next((name for name, value in cell if isinstance(value, str) and value == word), "")


def _written(value: object) -> str:
    """A value of an axis as a gate writes it."""
    return "none" if value is None else str(value)


def _hint(word: str, cells: Sequence[Scenario]) -> str:
    """A hint about a word that no cell has."""
    axis, equals, value = word.partition("=")
    if equals:
        return nearest(value, dict.fromkeys(_written(getattr(cell, axis)) for cell in cells))
    numbers = {f"{name}={value}" for cell in cells for name, value in cell if str(value) == word}
    if numbers:
        return f"Name the axis of a number: {' or '.join(sorted(numbers))}."
    return nearest(word, sorted({value for cell in cells for _, value in cell if isinstance(value, str)}))


@dataclass(frozen=True)
class Judgement:
    """The result of a gate: it tripped, it held, or (`tripped` is None) it could not be decided; with a sentence."""

    gate: Gate
    tripped: bool | None
    sentence: str

    def __str__(self) -> str:
        word = {True: "tripped", False: "held", None: "undecided, counts as tripped"}[self.tripped]
        return f"gate {word}: {self.sentence}"


def judge(gate: Gate, pool: Pool) -> Judgement:
    """Decide a gate."""
    found = [(f" [{place.label}]" if len(pool.places) > 1 else "", cells) for place, cells in pool.by_place()]
    tripped, sentence = _any(gate, found) if isinstance(gate, AnyGate) else _compare(gate, found)
    return Judgement(gate, tripped, f"{gate.text}: {sentence}")


def concerns(gate: Gate, cells: Sequence[Scenario]) -> bool:
    """Whether a gate is about any cells: one that it selects, or a pair that it compares."""
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
        return None, "the results have no two cells that it can compare"
    return False, f"true for none of {held}"


def _numbers(
    gate: CompareGate, left: Scenario | None, right: Scenario | None, cells: Cells
) -> tuple[float, float] | None:
    """The values of both sides of a comparison in one environment; None if unknown."""
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
    """Pairs of cells that agree on every axis that the selectors do not name; None stands for a plain number."""
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
