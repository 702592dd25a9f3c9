"""Where a run speaks and writes: stderr for people, and a folder that is tried before the work begins."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from mpsdiag.errors import BadInput
from mpsdiag.serialization import readable


def require_writable(folder: Path) -> None:
    """Find out before an hour of training.

    Raises:
        BadInput: The folder cannot be made or written.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError as problem:
        # A locale without these letters hands them over as surrogates. Python can write there; the libraries cannot.
        raise BadInput(
            f"Cannot write into '{readable(str(folder))}': this locale has no such letters. Set LC_ALL=C.UTF-8 or "
            "PYTHONUTF8=1, or choose an --output_dir in ASCII."
        ) from problem
    probe = folder / ".mpsdiag-write-test"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as problem:
        raise BadInput(
            f"Cannot write into '{folder}': {problem.strerror}. Choose an --output_dir you may write to."
        ) from problem


def say(text: str) -> None:
    """Write one message for people, at once."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextlib.contextmanager
def messages_on_stderr() -> Iterator[None]:
    """Show the house's own log on stderr while the pipeline runs."""
    house = logging.getLogger("mpsdiag")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    house.addHandler(handler)
    propagate, house.propagate = house.propagate, False
    try:
        yield
    finally:
        house.removeHandler(handler)
        house.propagate = propagate
