"""Python's cyclic garbage collector, out of the way while a report holds a hundred thousand records."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause it.

    Everything a report reads lives until the report is done; looking for garbage in it takes twice as long again
    as reading it.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
