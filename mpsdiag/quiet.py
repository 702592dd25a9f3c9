"""Keep a library's warnings back where what they warn of is being found out, and said in better words."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def errors_only(logger_name: str) -> Iterator[None]:
    """Let a logger say errors only until the block ends. Also usable as a decorator.

    Args:
        logger_name: Such as `transformers.modeling_utils`; its children follow.
    """
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
