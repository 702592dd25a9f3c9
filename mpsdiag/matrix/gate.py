"""Gates: sentences such as `safe_sdpa.eval_time > 1.05 * sdpa.eval_time`, parsed by a small grammar, never evaluated.

    gate       = "any" STATUS "in" ( "all" | selector )  |  term COMPARE term
    term       = [ NUMBER "*" ] selector "." MEASURE     |  NUMBER
    selector   = WORD { "+" WORD }          words of any axis: attention, trainer, padding, model, dtype, ...
    COMPARE    = ">" | ">=" | "<" | "<="
    STATUS     = a status of a cell, or "bad" (error, crash, oom, timeout)

A comparison of two selectors is made for every pair of cells that agree on all axes the selectors do not name. The
gate trips when it is true of any. A word that a matrix has not, or a number that is not there, never passes quietly.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mpsdiag.errors import BadInput, nearest
from mpsdiag.matrix.job import BAD_ENDS
from mpsdiag.matrix.measures import MEASURES, measure
from mpsdiag.matrix.record import Cell, Record
from mpsdiag.words import CELL_STATUSES

_ANY = re.compile(r"any\s+(\S+)\s+in\s+(\S+)")
_SIDES = re.compile(r"(.+?)\s*(>=|<=|>|<)\s*(.+)")
_NUMBER = r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
_TERM = re.compile(rf"(?:(?P<factor>{_NUMBER})\s*\*\s*)?(?P<selector>[\w/:+.-]+)\.(?P<measure>[a-z_]+)")
_COMPARE: Final[Mapping[str, Callable[[float, float], bool]]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
HELP = (
    "Write it like 'safe_sdpa.eval_time > 1.05 * sdpa.eval_time', 'safe_sdpa.loss_moved_by > 0' "
    "or 'any nan in safe_sdpa'."
)


@dataclass(frozen=True)
class Selector:
    """Cells that have every one of these words on some axis; all cells if there are none."""

    words: tuple[str, ...]

    def takes(self, cell: Cell) -> bool:
        """Whether a cell is meant."""
        return all(_axis_of(word, cell) for word in self.words)

    def axes(self, cell: Cell) -> set[str]:
        """The axes of a cell that the words are on."""
        return {_axis_of(word, cell) for word in self.words}

    def __str__(self) -> str:
        return "+".join(self.words) or "all"


@dataclass(frozen=True)
class Term:
    """A number, or a measure of some cells times a number."""

    factor: float
    selector: Selector | None = None
    measure: str = ""

    def __str__(self) -> str:
        if self.selector is None:
            return f"{self.factor:g}"
        return f"{'' if self.factor == 1 else f'{self.factor:g} * '}{self.selector}.{self.measure}"


@dataclass(frozen=True)
class AnyGate:
    """Trips when any of the cells has the status."""

    status: str
    selector: Selector

    def __str__(self) -> str:
        return f"any {self.status} in {self.selector}"


@dataclass(frozen=True)
class CompareGate:
    """Trips when the comparison is true of any pair of cells."""

    left: Term
    sign: str
    right: Term

    def __str__(self) -> str:
        return f"{self.left} {self.sign} {self.right}"


Gate = AnyGate | CompareGate


@dataclass(frozen=True)
class Judgement:
    """What a gate found: it tripped, it held, or (`tripped` is None) it could not be decided; with the sentence."""

    gate: Gate
    tripped: bool | None
    sentence: str


def parse_gate(text: str) -> Gate:
    """Parse a gate.

    Raises:
        BadInput: It is none; the sentence shows one and names the nearest word.
    """
    text = text.strip()
    found = _ANY.fullmatch(text)
    if found:
        status, selector = found.groups()
        if status not in {*CELL_STATUSES, "bad"}:
            raise BadInput(
                f"--fail-if '{text}': unknown status '{status}'. {nearest(status, [*CELL_STATUSES, 'bad'])}"
            )
        return AnyGate(status, Selector(()) if selector == "all" else _selector(selector))
    sides = _SIDES.fullmatch(text)
    if not sides:
        raise BadInput(f"--fail-if '{text}' is no gate. {HELP}")
    left, sign, right = sides.groups()
    gate = CompareGate(_term(left, text), sign, _term(right, text))
    if gate.left.selector is None and gate.right.selector is None:
        raise BadInput(f"--fail-if '{text}' compares two numbers and no cell. {HELP}")
    return gate


def require_words(gate: Gate, cells: Sequence[Cell]) -> None:
    """Make sure, before hours of work, that a gate is about cells that there are.

    Raises:
        BadInput: A word in it is on no axis of any cell, or no cell has all its words.
    """
    for selector in _selectors(gate):
        for word in selector.words:
            if not any(_axis_of(word, cell) for cell in cells):
                known = sorted({str(value) for cell in cells for _, value in cell if isinstance(value, str)})
                raise BadInput(
                    f"--fail-if '{gate}': no cell of the matrix has '{word}'. {nearest(word, known)}"
                )
        if not any(selector.takes(cell) for cell in cells):
            raise BadInput(f"--fail-if '{gate}': no cell of the matrix has all of '{selector}'.")


def evaluate(gate: Gate, records: Iterable[Record]) -> Judgement:
    """Decide a gate.

    Args:
        gate: Parsed.
        records: All rounds of all cells; skipped cells count for `any skip` only.
    """
    cells = _by_cell(records)
    if isinstance(gate, AnyGate):
        wanted = BAD_ENDS if gate.status == "bad" else {gate.status}
        hits = [
            cell
            for cell, rounds in cells.items()
            if gate.selector.takes(cell) and any(record.status in wanted for record in rounds)
        ]
        first = f", the first {describe(hits[0])}" if hits else ""
        number = sum(map(gate.selector.takes, cells))
        return Judgement(gate, bool(hits), f"{gate}: {len(hits)} of {number} cells{first}")
    return _compare(gate, cells)


def _compare(gate: CompareGate, cells: Mapping[Cell, list[Record]]) -> Judgement:
    unknown: list[str] = []
    held = 0
    for left, right in _pairs(gate, list(cells)):
        one, other = (
            term.factor * (1.0 if cell is None else measure(cells[cell], term.measure))
            for term, cell in ((gate.left, left), (gate.right, right))
        )
        what = f"{gate}: {one:.6g} against {other:.6g} ({describe(left or right)})"
        if math.isnan(one) or math.isnan(other):
            unknown.append(what)
        elif _COMPARE[gate.sign](one, other):
            return Judgement(gate, tripped=True, sentence=what)
        else:
            held += 1
    if unknown:
        return Judgement(gate, None, f"{unknown[0]}: a number is missing or NaN, so this cannot be decided")
    if not held:
        return Judgement(gate, None, f"{gate}: no two cells of the results can be compared by it")
    return Judgement(gate, tripped=False, sentence=f"{gate}: true of none of {held}")


def _pairs(gate: CompareGate, cells: Sequence[Cell]) -> Iterable[tuple[Cell | None, Cell | None]]:
    """Pairs of cells that agree on every axis the selectors do not name; None stands for a plain number."""
    left, right = gate.left.selector, gate.right.selector
    ours = [cell for cell in cells if left is not None and left.takes(cell)]
    theirs = [cell for cell in cells if right is not None and right.takes(cell)]
    if left is None or right is None:
        yield from ((cell, None) for cell in ours)
        yield from ((None, cell) for cell in theirs)
        return
    for one in ours:
        for other in theirs:
            free = left.axes(one) | right.axes(other)
            if all(getattr(one, name) == getattr(other, name) for name, _ in one if name not in free):
                yield one, other


def _term(text: str, gate: str) -> Term:
    if re.fullmatch(_NUMBER, text):
        return Term(float(text))
    found = _TERM.fullmatch(text)
    if not found:
        raise BadInput(f"--fail-if '{gate}': '{text}' is neither a number nor CELL.MEASURE. {HELP}")
    if found["measure"] not in MEASURES:
        raise BadInput(
            f"--fail-if '{gate}': unknown measure '{found['measure']}'. {nearest(found['measure'], MEASURES)}"
        )
    return Term(float(found["factor"] or 1), _selector(found["selector"]), found["measure"])


def _selector(text: str) -> Selector:
    return Selector(tuple(word for word in text.split("+") if word))


def _selectors(gate: Gate) -> list[Selector]:
    if isinstance(gate, AnyGate):
        return [gate.selector]
    return [term.selector for term in (gate.left, gate.right) if term.selector is not None]


def _axis_of(word: str, cell: Cell) -> str:
    """The axis on which a cell has this word; empty if on none."""
    return next((name for name, value in cell if isinstance(value, str) and value == word), "")


def _by_cell(records: Iterable[Record]) -> dict[Cell, list[Record]]:
    cells: dict[Cell, list[Record]] = {}
    for record in records:
        cells.setdefault(record.cell, []).append(record)
    return cells


def describe(cell: Cell | None) -> str:
    """Name a cell by the axes that people compare."""
    if cell is None:
        return ""
    return f"{cell.attention} + {cell.trainer}, {cell.padding}, {cell.model}, {cell.dtype}"
