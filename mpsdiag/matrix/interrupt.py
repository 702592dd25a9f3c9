"""Ctrl-C while cells run: the first asks to stop and gives the running cell a moment, the second ends it now."""

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

    @property
    def asked(self) -> bool:
        """Whether somebody asked: no further cell is begun."""
        return self._deadline is not None

    @property
    def due(self) -> bool:
        """Whether the moment is over: running cells are ended."""
        return self._deadline is not None and self.clock() >= self._deadline


class Interruptible:
    """Turns Ctrl-C into `Stop.ask` while its block runs, so that no journal line is ever cut by an exception."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._before: Any = None

    def __enter__(self) -> Self:
        # Only the main thread may set signal handlers; elsewhere whoever runs the thread decides.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._stop.ask()
