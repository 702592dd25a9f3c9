"""Progress of a matrix on stderr: a bar on a terminal, occasional lines in a pipe, problems immediately."""

import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from typing_extensions import Self

from mpsdiag.benching.journal.record import BAD_ENDS, Record
from mpsdiag.progress import bar
from mpsdiag.words import count

EVERY_SECONDS = 15.0


@dataclass
class Progress:
    """Shows a run on stderr; a context manager. `clock` is in seconds."""

    clock: Callable[[], float] = time.monotonic
    _show: Callable[[str], None] = field(default=lambda _: None, init=False)
    _open: ExitStack = field(default_factory=ExitStack, init=False)
    _title: str = field(default="", init=False)
    _total: int = field(default=0, init=False)
    _done: int = field(default=0, init=False)
    _said: float = field(default=0.0, init=False)
    _statuses: Counter[str] = field(default_factory=Counter, init=False)

    def __enter__(self) -> Self:
        self._show = self._open.enter_context(bar())
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def busy(self, words: str) -> None:
        """Show work of unknown length."""
        self._show(words)
        if not sys.stderr.isatty():
            self.note(words)

    def leg(self, title: str, total: int, done: int) -> None:
        """A leg begins: its jobs, and how many of them the journal already has."""
        self._title, self._total, self._done = title, total, done
        self._statuses.clear()
        self._draw()
        if not sys.stderr.isatty():
            found = f", {done} of them already in the journal" if done else ""
            self.note(f"{title}: {count(total, 'cell')}{found}")

    def ended(self, record: Record) -> None:
        """A round ended and is in the journal."""
        self._done += 1
        self._statuses[record.status] += 1
        if record.status in BAD_ENDS:
            self.note(f"{record.status}: {record.cell.title}: {record.reason} (key {record.key})")
        self._draw()
        due = self.clock() - self._said >= EVERY_SECONDS and self._done < self._total
        if due and not sys.stderr.isatty():
            self.note(f"{self._title}: {self._done} of {self._total} ({self._counts})")

    def note(self, sentence: str) -> None:
        """A note: one sentence on its own line."""
        self._said = self.clock()
        clean = "".join(character if character.isprintable() else " " for character in sentence)
        sys.stderr.write(f"mpsdiag: {clean}\n")
        sys.stderr.flush()

    @property
    def _counts(self) -> str:
        return ", ".join(f"{number} {status}" for status, number in self._statuses.items())

    def _draw(self) -> None:
        if self._done < self._total:
            counts = f" ({self._counts})" if self._statuses else ""
            self._show(f"{self._title}{counts}, {self._done + 1} of {self._total}")
