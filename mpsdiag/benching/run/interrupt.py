"""Ctrl-C while cells run: the first asks to stop and gives the running cell a moment, the second ends it now.

SIGTERM and SIGHUP (the terminal is gone) end it now, too. Before cells run, Ctrl-C is an exception as everywhere.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from typing_extensions import Self

GRACE = 5.0
"""Seconds that a running cell gets after the first Ctrl-C to finish by itself."""
STOPPED = "stopped by the user before it finished"


@dataclass
class Stop:
    """Whether, and until when, the user wants to stop.

    `grace` are the seconds between asking and ending; `notify` is called once, at the first asking.
    """

    grace: float = GRACE
    notify: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    _deadline: float | None = field(default=None, init=False)

    def ask(self) -> None:
        """Ask to stop; asking again ends the moment that the running cell was given."""
        if self._deadline is None:
            self._deadline = self.clock() + self.grace
            self.notify()
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


class _Handlers(contextlib.AbstractContextManager[Any, None]):
    """Puts signal handlers in place while a block runs. Only the main thread may; elsewhere its owner decides."""

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}

    def _handle(self, number: signal.Signals, handler: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before[number] = signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


class Remembered(_Handlers):
    """Ctrl-C, SIGTERM and SIGHUP around the cells: the KeyboardInterrupt that Ctrl-C is everywhere, and remembered.

    The exception gets lost where it meets a finalizer, or an import that catches everything; `Interruptible` then asks
    to stop for it. What other handlers the process may have stay in place. `pressed`: the user wants to stop. `spare`:
    from now on the first one is remembered only, so that what is short and worth having gets finished.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pressed = False
        self.spare = False
        self._unraisable: Any = None

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) in {signal.default_int_handler, signal.SIG_DFL}:
                self._handle(number, self)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._lost
        return self

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = self._unraisable
        super().__exit__()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """As a signal's handler."""
        spared, self.pressed = self.spare and not self.pressed, True
        if not spared:
            signal.default_int_handler(number, frame)

    def _lost(self, problem: Any) -> None:
        """Python's report of an exception that nothing could catch; ours is not lost, and not worth reporting."""
        if not (self.pressed and problem.exc_type is KeyboardInterrupt):
            self._unraisable(problem)


class Interruptible(_Handlers):
    """Turns Ctrl-C, SIGTERM and SIGHUP into calls of a Stop while its block runs: none cuts a journal line."""

    def __init__(self, stop: Stop) -> None:
        super().__init__()
        self._stop = stop

    def __enter__(self) -> Self:
        self._handle(signal.SIGINT, lambda *_: self._stop.ask())
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._handle(number, lambda *_: self._stop.end())
        before = self._before.get(signal.SIGINT)
        if isinstance(before, Remembered) and before.pressed:
            self._stop.ask()
        return self
