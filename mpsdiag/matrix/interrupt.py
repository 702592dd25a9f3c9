"""Ctrl-C while cells run: the first asks to stop and gives the running cell a moment, the second ends it now.

SIGTERM ends it now, too. Before cells run, Ctrl-C is an exception as everywhere.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

GRACE = 5.0
"""Seconds that a running cell gets after the first Ctrl-C to finish by itself."""


@dataclass
class Stop:
    """Whether, and until when, the user wants to stop.

    Attributes:
        grace: Seconds between asking and ending.
        told: Called once, at the first asking.
        clock: Seconds.
    """

    grace: float = GRACE
    told: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    _deadline: float | None = field(default=None, init=False)

    def ask(self) -> None:
        """Ask to stop; asking again ends the moment that the running cell was given."""
        if self._deadline is None:
            self._deadline = self.clock() + self.grace
            self.told()
        else:
            self._deadline = self.clock()

    def end(self) -> None:
        """Ask to stop without any such moment."""
        self._deadline = self.clock()

    @property
    def asked(self) -> bool:
        """Whether somebody asked: no further cell is begun."""
        return self._deadline is not None

    @property
    def due(self) -> bool:
        """Whether the moment is over: running cells are ended."""
        return self._deadline is not None and self.clock() >= self._deadline


class Remembered:
    """Python's own handling of Ctrl-C, remembered: a context manager for what comes before the cells.

    The exception can get lost in what libraries do while they are imported, and in finalizers always; `Interruptible`
    then asks to stop for it.
    """

    def __init__(self) -> None:
        self.pressed = False
        self._installed = False

    def __enter__(self) -> Self:
        ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if ours and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self)
            self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """As a signal's handler."""
        self.pressed = True
        signal.default_int_handler(number, frame)


class Interruptible:
    """Turns Ctrl-C and SIGTERM into words to a Stop while its block runs: no exception ever cuts a journal line."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Only the main thread may set signal handlers; elsewhere whoever runs the thread decides.
        if threading.current_thread() is threading.main_thread():
            for number, handler in ((signal.SIGINT, self._ask), (signal.SIGTERM, self._end)):
                self._before[number] = signal.signal(number, handler)
            before = self._before[signal.SIGINT]
            if isinstance(before, Remembered) and before.pressed:
                self._stop.ask()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._stop.ask()

    def _end(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._stop.end()
