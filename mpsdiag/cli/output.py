"""How a command prints: data on stdout, sentences on stderr, as wide and as colourful as the terminal is."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

PIPE_COLUMNS = 100
LEAST_COLUMNS = 60


def width() -> int:
    """Columns to lay text out for: those of the terminal, or COLUMNS, within reason."""
    return max(LEAST_COLUMNS, shutil.get_terminal_size((PIPE_COLUMNS, 24)).columns)


def colored() -> bool:
    """Whether stdout is a terminal that shows colours, and whose user wants them."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return wanted and sys.stdout.isatty()


def console() -> Console:
    """A rich console on stdout by the same rules."""
    from rich.console import Console

    return Console(width=width(), color_system="auto" if colored() else None)


def show(text: str) -> None:
    """Print for people. Where the encoding of stdout does not have our marks, the stream spells them in ASCII."""
    _write(text)


def show_document(text: str) -> None:
    """Print for programs. Where the encoding of stdout cannot hold it, it is UTF-8 all the same."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        stream: Any = sys.stdout
        stream.flush()
        stream.buffer.write(_ended(text).encode("utf-8", errors="replace"))
        return
    _write(text)


def say(sentence: str) -> None:
    """Tell the user on stderr, on one line, who says it."""
    from mpsdiag.reporting.formats.escape import one_line

    sys.stderr.write(f"mpsdiag: {one_line(sentence, 1000)}\n")
    sys.stderr.flush()


def _write(text: str) -> None:
    sys.stdout.write(_ended(text))
    sys.stdout.flush()


def _ended(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"
