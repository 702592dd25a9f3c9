"""What a running matrix says on stderr: a bar on a terminal, a line now and then in a pipe, trouble at once."""

import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

from typing_extensions import Self

from mpsdiag.benching.journal.record import BAD_ENDS, Record
from mpsdiag.words import count

EVERY_SECONDS = 15.0


@dataclass
class Progress:
    """Shows a run on `stream`; a context manager. `clock` is in seconds."""

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    clock: Callable[[], float] = time.monotonic
    _bar: Any = field(default=None, init=False)
    _task: Any = field(default=None, init=False)
    _title: str = field(default="", init=False)
    _total: int = field(default=0, init=False)
    _done: int = field(default=0, init=False)
    _said: float = field(default=0.0, init=False)
    _statuses: Counter[str] = field(default_factory=Counter, init=False)

    def __enter__(self) -> Self:
        if self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[statuses]}", markup=False),
                console=Console(file=self.stream),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def busy(self, words: str) -> None:
        """Say what takes a while of unknown length."""
        if self._bar is None:
            self.note(words)
        else:
            self._task = self._bar.add_task(words, total=None, statuses="")

    def leg(self, title: str, total: int, done: int) -> None:
        """A leg begins: its jobs, and how many of them the journal has already."""
        self._title, self._total, self._done = title, total, done
        self._statuses.clear()
        if self._bar is None:
            found = f", {done} of them already in the journal" if done else ""
            self.note(f"{title}: {count(total, 'cell')}{found}")
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(title, total=total, completed=done, statuses="")

    def ended(self, record: Record) -> None:
        """A round ended and is in the journal."""
        self._done += 1
        self._statuses[record.status] += 1
        if record.status in BAD_ENDS:
            self.note(f"{record.status}: {record.cell.title}: {record.reason} (key {record.key})")
        counts = ", ".join(f"{number} {status}" for status, number in self._statuses.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, statuses=counts)
        elif self.clock() - self._said >= EVERY_SECONDS and self._done < self._total:
            self.note(f"{self._title}: {self._done} of {self._total} ({counts})")

    def note(self, sentence: str) -> None:
        """Something to know: one sentence, on a line of its own."""
        self._said = self.clock()
        clean = "".join(character if character.isprintable() else " " for character in sentence)
        if self._bar is not None:
            self._bar.console.print(clean, markup=False, highlight=False)
        else:
            self.stream.write(f"mpsdiag: {clean}\n")
            self.stream.flush()
