"""What a command prints: answers and data on stdout, messages on stderr, into pipes that may close."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import select
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mpsdiag.errors import MpsdiagError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from mpsdiag.reporting.layout.blocks import Document

PLAIN = "mpsdiag-plain"
"""Name of the codec error handler that replaces characters an encoding lacks."""


class CannotPrint(MpsdiagError):  # noqa: N818 - as the other sentences of the house
    """The answer cannot be written to standard output. Exit code 2."""


def guard() -> None:
    """Replace the standard streams of this process by the ones of this file.

    Streams that other code has replaced, as tests do, are left alone.
    """
    _open_closed()
    codecs.register_error(PLAIN, _plain)
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _stream(sys.stdout, _Data(1, "wb", closefd=False))
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _stream(sys.stderr, _Sink(2, "wb", closefd=False))


def _open_closed() -> None:
    """Open the null device in place of closed standard streams: the next file opened would get their output."""
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
    """Writes everything at once: nothing is buffered that could fail again at exit."""

    _broken = False

    def write(self, data: ReadableBuffer, /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and not self._broken:
                written = super().write(rest)
                if written is None:  # another process made the shared pipe non-blocking, and it is full
                    select.select([], [self], [])
                rest = rest[written or 0 :]
        except OSError as problem:
            self._broken = True
            self.broke(problem)
        return size

    def broke(self, problem: OSError) -> None:
        """Called once; everything written afterwards is discarded."""


class _Data(_Sink):
    """Standard output."""

    def broke(self, problem: OSError) -> None:
        if problem.errno != errno.EPIPE:
            raise CannotPrint(
                f"Cannot write to standard output: {problem.strerror}. Redirect it elsewhere and run this again."
            ) from problem


def _plain(problem: UnicodeError) -> tuple[str, int]:
    """The codec error handler: marks become ASCII, other characters a question mark."""
    from mpsdiag.escape import ascii_text

    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    return ascii_text(problem.object[problem.start : problem.end]), problem.end


PIPE_COLUMNS = 100
LEAST_COLUMNS = 60


def width() -> int:
    """Columns available for text: those of the terminal, or COLUMNS; never fewer than LEAST_COLUMNS."""
    return max(LEAST_COLUMNS, shutil.get_terminal_size((PIPE_COLUMNS, 24)).columns)


def colored(stream: TextIO | None = None) -> bool:
    """Whether a stream (by default stdout) is a terminal that shows colours and the user wants them."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return wanted and (stream or sys.stdout).isatty()


def show(text: str) -> None:
    """Print for people. If stdout's encoding lacks a mark, the stream spells it in ASCII."""
    sys.stdout.write(_ended(text))
    sys.stdout.flush()


def show_document(text: str) -> None:
    """Print for programs, in UTF-8 if the encoding of stdout cannot hold the text."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        stream: Any = sys.stdout
        stream.flush()
        stream.buffer.write(_ended(text).encode("utf-8", errors="replace"))
    else:
        show(text)


def say(sentence: str) -> None:
    """Print a sentence on stderr, on one line, after the name of the program."""
    sys.stderr.write(f"mpsdiag: {line(sentence)}\n")
    sys.stderr.flush()


def line(text: str) -> str:
    """A text as one line that is safe for a terminal: no control characters, limited length."""
    from mpsdiag.escape import one_line

    return one_line(text, 1000)


def show_answer(
    document: dict[str, Any], made: Document, *, as_json: bool, markdown: bool, page: Path | None = None
) -> None:
    """Print an answer as one JSON document, a block for an issue, or text; also write its page if one is asked for."""
    from mpsdiag.reporting.formats import shown

    if as_json:
        from mpsdiag.escape import redact_all
        from mpsdiag.serialization import dumps, jsonable

        show_document(dumps(redact_all(jsonable(document)), indent=2))
    else:
        text = shown(made, "markdown" if markdown else "terminal", width=width(), color=colored())
        (show_document if markdown else show)(text)
    if page is not None:
        from mpsdiag.serialization import write_atomically

        write_atomically(page, shown(made, "html"))
        say(f"wrote {page}")


def _ended(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"
