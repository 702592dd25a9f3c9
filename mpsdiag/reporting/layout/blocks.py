"""The blocks of a report. Their texts are raw and untrusted: each format escapes them in its own way."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, TypeVar

from mpsdiag.reporting.story.figures import NOTHING, Mark, Tone

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One cell of a table. `sort` is its key in a sortable table; None: its text."""

    text: str
    tone: Tone = "plain"
    sort: float | None = None
    short: str | None = None
    """The text that a narrow format shows instead."""


Cell = Entry | Mark | str
"""Values that a table cell can be made from."""


@dataclass(frozen=True)
class Column:
    """A column; numbers are aligned on the right."""

    name: str
    number: bool = False
    minor: bool = False
    """Whether a narrow format leaves it out."""


@dataclass(frozen=True)
class Table:
    """A table; `left_out` rows are not shown, which every format says below it."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    note: str = ""
    left_out: int = 0


@dataclass(frozen=True)
class Prose:
    """A sentence or a short paragraph."""

    text: str
    tone: Tone = "plain"

    def __bool__(self) -> bool:
        return bool(self.text)


@dataclass(frozen=True)
class Points:
    """A list of short texts."""

    texts: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.texts)


@dataclass(frozen=True)
class Log:
    """The end of a log, lines kept, or a command to copy."""

    title: str
    text: str

    def __bool__(self) -> bool:
        return bool(self.text)


@dataclass(frozen=True)
class Picture:
    """The place of a picture. Its `name`, the key among the pictures, begins with its kind; `alt` describes it."""

    name: str
    alt: str
    title: str
    subject: Any
    """The data it is drawn from."""


@dataclass(frozen=True)
class Fold:
    """A long part, folded if the format can do that."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Heading:
    """Begins a part of a section."""

    text: str


Block = Table | Prose | Points | Log | Picture | Fold | Heading


@dataclass(frozen=True)
class Section:
    """A chapter of the report. `key` is stable: links and tests use it."""

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A whole answer: the verdict in `word` gives the headline its colour."""

    title: str
    headline: str
    word: str
    sections: tuple[Section, ...]


Part = tuple[str, str, Iterable[Block]]
"""Key, title and blocks of a section."""


def document(title: str, headline: str, word: str, parts: Iterable[Part]) -> Document:
    """A document of the parts that are not empty."""
    sections = (Section(key, name, tuple(filter(None, content))) for key, name, content in parts)
    return Document(title, headline, word, tuple(one for one in sections if one.blocks))


@dataclass(frozen=True)
class Limits:
    """How much a format shows before it shortens.

    `cell`: characters of a table's cell; `folds`: whether it can fold parts away.
    """

    rows: int = 60
    cell: int = 200
    panels: int = 12
    logs: int = 20
    log_length: int = 4000
    folds: bool = True
    pictures: bool = True


def columns(*names: str, numbers: Collection[str] = (), minor: Collection[str] = ()) -> tuple[Column, ...]:
    """Columns by name; `numbers` and `minor` name those of numbers and the minor ones."""
    return tuple(Column(name, name in numbers, name in minor) for name in names)


def table(
    title: str,
    heads: Iterable[str | Column],
    items: Sequence[T],
    row: Callable[[T], Iterable[Cell]],
    limits: Limits | None = None,
    note: str = "",
) -> Table:
    """A table with a row for each item, up to the limits; texts and marks become entries."""
    columns = tuple(Column(head) if isinstance(head, str) else head for head in heads)
    rows = tuple(tuple(map(_entry, row(item))) for item in (items if limits is None else items[: limits.rows]))
    return Table(title, columns, rows, note, left_out=len(items) - len(rows))


def pairs(name: str, rows: Sequence[tuple[str, str]]) -> Table:
    """A table of names with their values."""
    return table("", (name, "value"), rows, iter)


def facts(title: str, pairs: Iterable[tuple[str, str]]) -> Fold:
    """Names with their values, such as an environment, folded if the format can do that."""
    return Fold(title, (Points(tuple(f"{name}: {value}" for name, value in pairs)),))


def value(text: str, number: float | None, tone: Tone = "plain") -> Entry:
    """A number in a table; missing and non-finite ones sort last."""
    return Entry(text, tone, math.inf if number is None or math.isnan(number) else number)


def without_empty(table: Table) -> Table:
    """Leave out the empty columns."""
    kept = [any(entry.text not in {"", NOTHING} for entry in column) for column in zip(*table.rows, strict=True)]
    rows = tuple(tuple(compress(row, kept)) for row in table.rows)
    return replace(table, columns=tuple(compress(table.columns, kept)), rows=rows)


def _entry(cell: Cell) -> Entry:
    """A table cell as an entry; good marks sort first."""
    if isinstance(cell, str):
        return Entry(cell)
    if isinstance(cell, Mark):
        short = f"{cell.symbol} {cell.text.removeprefix('moved ')}"
        return Entry(str(cell), cell.tone, _goodness(cell.text), short)
    return cell


def _goodness(text: str) -> float:
    order = ("exact", "correct", "moved", "interrupted", "not", "error", "timeout", "out", "crashed", "wrong")
    return float(next((number for number, word in enumerate(order) if text.startswith(word)), len(order)))
