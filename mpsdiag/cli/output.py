"""What a command prints, and where: answers and data on stdout, messages on stderr, into pipes that may close."""

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


PIPE_COLUMNS = 100
LEAST_COLUMNS = 60


def width() -> int:
    """Columns to lay text out for: those of the terminal, or COLUMNS, within reason."""
    return max(LEAST_COLUMNS, shutil.get_terminal_size((PIPE_COLUMNS, 24)).columns)


def colored(stream: TextIO | None = None) -> bool:
    """Whether a stream, stdout if None, is a terminal that shows colours, and whose user wants them."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return wanted and (stream or sys.stdout).isatty()


def show(text: str) -> None:
    """Print for people. Where the encoding of stdout does not have our marks, the stream spells them in ASCII."""
    sys.stdout.write(_ended(text))
    sys.stdout.flush()


def show_document(text: str) -> None:
    """Print for programs. Where the encoding of stdout cannot hold it, it is UTF-8 all the same."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        stream: Any = sys.stdout
        stream.flush()
        stream.buffer.write(_ended(text).encode("utf-8", errors="replace"))
    else:
        show(text)


def say(sentence: str) -> None:
    """Say something on stderr, on one line, with the name of the program."""
    sys.stderr.write(f"mpsdiag: {line(sentence)}\n")
    sys.stderr.flush()


def line(text: str) -> str:
    """A text as one line that a terminal can take: nothing that steers it, and not without end."""
    from mpsdiag.escape import one_line

    return one_line(text, 1000)


def show_answer(
    document: dict[str, Any], made: Document, *, as_json: bool, markdown: bool, page: Path | None = None
) -> None:
    """Print what a command found: one JSON document, the block for an issue, or text; then a page beside it."""
    if as_json:
        from mpsdiag.escape import redact_all
        from mpsdiag.serialization import dumps, jsonable

        show_document(dumps(redact_all(jsonable(document)), indent=2))
    elif markdown:
        from mpsdiag.reporting.formats.markdown import issue_block

        show_document(issue_block(made))
    else:
        from mpsdiag.reporting.formats import terminal

        show(terminal.write(made, width=width(), color=colored()))
    if page is not None:
        from mpsdiag.reporting.formats import html
        from mpsdiag.serialization import write_atomically

        write_atomically(page, html.page(made))
        say(f"wrote {page}")


def _ended(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"
