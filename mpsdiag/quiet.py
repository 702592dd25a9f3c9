"""Suppress a library's warnings about things that mpsdiag itself checks and reports."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any


@contextmanager
def no_bars(progress: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hide the progress bars of transformers and the hub, such as for loading weights, until the block ends.

    If stderr is a terminal, `progress` gets the hub's downloads in MiB: two bars would overwrite each other.
    """
    from huggingface_hub import utils
    from transformers.utils import logging as bars

    hub: Any = utils  # exports it without saying so
    if not bars.is_progress_bar_enabled() or hub.are_progress_bars_disabled():
        yield
        return
    bars.disable_progress_bar()  # type: ignore[no-untyped-call]  # in transformers
    with _downloads(hub, progress) if progress is not None and sys.stderr.isatty() else nullcontext():
        try:
            yield
        finally:
            bars.enable_progress_bar()  # type: ignore[no-untyped-call]  # in transformers


@contextmanager
def _downloads(hub: Any, progress: Callable[[str], None]) -> Iterator[None]:
    """Report the progress of the hub's bars instead of drawing them."""
    from unittest.mock import patch

    def display(bar: Any, *_: Any, **__: Any) -> None:
        if bar.total:
            progress(f"downloading {bar.desc or 'files'}, MiB {int(bar.n) >> 20} of {int(bar.total) >> 20}")

    def close(bar: Any) -> None:
        bar.disable = True  # and so writes nothing more

    hub.enable_progress_bars()
    with patch.multiple(hub.tqdm, display=display, close=close):
        yield


@contextmanager
def errors_only(logger_name: str) -> Iterator[None]:
    """Let a logger emit only errors until the block ends. Also usable as a decorator."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def held_back(logger_name: str) -> Iterator[None]:
    """Hold back a logger's messages until the block ends; they are dropped if it raises: the exception is enough."""
    from logging.handlers import BufferingHandler

    logger, keeper = logging.getLogger(logger_name), BufferingHandler(sys.maxsize)
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [keeper], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
    for record in keeper.buffer:
        logger.handle(record)
