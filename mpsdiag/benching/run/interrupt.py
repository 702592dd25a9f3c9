"""Ctrl-C while cells run: the first one asks to stop and gives the running cell a moment, the second ends it.

SIGTERM and SIGHUP (a closed terminal) end it immediately, too. Before cells run, Ctrl-C is an ordinary exception.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from typing_extensions import Self

GRACE = 5.0
"""Seconds that a running cell gets to finish after the first Ctrl-C."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED = "stopped by the user before it finished"


@dataclass
class Stop:
    """Whether the user wants to stop, and until when a running cell may go on.

    `grace` is the number of seconds between the request and the end; `notify` is called once, at the first request.
    """

    grace: float = GRACE
    notify: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    _deadline: float | None = field(default=None, init=False)

    def ask(self) -> None:
        """Request a stop; a second request ends the grace period of the running cell."""
        if self._deadline is None:
            self._deadline = self.clock() + self.grace
            self.notify()
        else:
            self._deadline = self.clock()

    def end(self) -> None:
        """Request a stop without a grace period."""
        self._deadline = self.clock()

    @property
    def asked(self) -> bool:
        """Whether a stop was requested: no further cell is started."""
        return self._deadline is not None

    @property
    def due(self) -> bool:
        """Whether the grace period is over: running cells are ended."""
        return self._deadline is not None and self.clock() >= self._deadline


@contextlib.contextmanager
def _handling(handlers: dict[signal.Signals, Any]) -> Iterator[dict[signal.Signals, Any]]:
    """Put signal handlers in place while a block runs, and give those before. Only the main thread may: else none."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()} if main else {}
    try:
        yield before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Remembered(contextlib.AbstractContextManager["Remembered", None]):
    """Ctrl-C, SIGTERM and SIGHUP before and after the cells: the usual KeyboardInterrupt, which is also remembered.

    The exception is lost inside a finalizer, or an import that catches everything; `interruptible` then requests the
    stop. Other handlers of the process stay in place. `pressed`: the user wants to stop. `spare`: from now on the first
    signal is only remembered, so that short and valuable work gets finished.
    """

    def __init__(self) -> None:
        self.pressed = False
        self.spare = False
        self._open = contextlib.ExitStack()
        self._unraisable: Any = None

    def __enter__(self) -> Self:
        stock = {signal.default_int_handler, signal.SIG_DFL}
        ours = [number for number in SIGNALS if signal.getsignal(number) in stock]
        self._open.enter_context(_handling(dict.fromkeys(ours, self)))
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._lost
        return self

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = self._unraisable
        self._open.close()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        spared, self.pressed = self.spare and not self.pressed, True
        if not spared:
            signal.default_int_handler(number, frame)

    def _lost(self, problem: Any) -> None:
        """Python's hook for exceptions that nothing could catch; ours is remembered, so it is not reported."""
        if not (self.pressed and problem.exc_type is KeyboardInterrupt):
            self._unraisable(problem)


@contextlib.contextmanager
def interruptible(stop: Stop) -> Iterator[None]:
    """Turn Ctrl-C, SIGTERM and SIGHUP into calls of a Stop while a block runs: none cuts a journal line."""
    calls = (stop.ask, stop.end, stop.end)
    handlers = {number: lambda *_, call=call: call() for number, call in zip(SIGNALS, calls, strict=True)}
    with _handling(handlers) as before:
        remembered = before.get(signal.SIGINT)
        if isinstance(remembered, Remembered) and remembered.pressed:
            stop.ask()
        yield
