"""Standard streams that may be closed, full, or piped into something that reads no further.

What is printed is data on stdout and words for people on stderr. Data that cannot be written is a failure: one
sentence, exit code 2. A reader who has seen enough (`| head`) is none: the rest goes nowhere, and the command ends with
the exit code that it would have had, which may be a verdict. Words that cannot be said end nothing.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING, Any, TextIO

from mpsdiag.errors import MpsdiagError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PLAIN = "mpsdiag-plain"
"""The name, for codecs, of how characters are written that an encoding does not have."""


class CannotPrint(MpsdiagError):  # noqa: N818 - as the other sentences of the house
    """Standard output does not take what was found. Exit code 2."""


def guard() -> None:
    """Make the standard streams of this process such as the head of this file says, for its whole life.

    Streams that somebody else put in place, as tests do, stay what they are.
    """
    _open_closed()
    codecs.register_error(PLAIN, _plain)
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _stream(sys.stdout, _Data(1, "wb", closefd=False))
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _stream(sys.stderr, _Sink(2, "wb", closefd=False))


def _open_closed() -> None:
    """Open the null device where a standard stream is closed: the next file would get its number, and its output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # noqa: PERF203 - three times
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _stream(before: Any, sink: _Sink) -> TextIO:
    """A text stream into a sink, with the encoding of the one before."""
    if before is None:
        return io.TextIOWrapper(sink, encoding="utf-8", errors=PLAIN)
    if isinstance(before, io.TextIOBase):
        with contextlib.suppress(OSError):
            before.flush()
    loose = before.errors in {"strict", "backslashreplace"}
    return io.TextIOWrapper(
        sink,
        encoding=before.encoding,
        errors=PLAIN if loose else before.errors,
        line_buffering=before.line_buffering,
        write_through=before.write_through,
    )


class _Sink(io.FileIO):
    """Takes all that it is given, in one call: nothing is held back that could fail again at the exit."""

    _broken = False

    def write(self, data: ReadableBuffer, /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and not self._broken:
                written = super().write(rest)
                if written is None:  # whoever shares the pipe made it non-blocking, and it is full
                    select.select([], [self], [])
                rest = rest[written or 0 :]
        except OSError as problem:
            self._broken = True
            self.broke(problem)
        return size

    def broke(self, problem: OSError) -> None:
        """Called once; what is written from then on goes nowhere."""


class _Data(_Sink):
    """Standard output."""

    def broke(self, problem: OSError) -> None:
        if problem.errno != errno.EPIPE:
            raise CannotPrint(
                f"Cannot write to standard output: {problem.strerror}. Send it elsewhere and run this again."
            ) from problem


def _plain(problem: UnicodeError) -> tuple[str, int]:
    """For codecs: our marks in ASCII, and a question mark for what has no such spelling."""
    from mpsdiag.escape import ascii_text

    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    return ascii_text(problem.object[problem.start : problem.end]), problem.end
