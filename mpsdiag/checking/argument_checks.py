"""Arguments of the Python interface, brought into the form used inside the package, or refused in a sentence."""

import os
from collections.abc import Sequence
from typing import Any

from mpsdiag.errors import BadInput
from mpsdiag.probes.known import find
from mpsdiag.words import LARGEST_SEED


def text(name: str, value: Any, example: str) -> str:
    """An argument that is a text.

    Args:
        name: Name of the argument.
        value: The value given.
        example: Allowed values, for the message.

    Raises:
        BadInput: It is not a text.
    """
    if isinstance(value, str):
        return value
    raise BadInput(f"{name} is {_shown(value)}; give a text, such as {example}.")


def path_or_name(name: str, value: Any, example: str) -> str:
    """The name of something, or the path to it.

    Raises:
        BadInput: It is neither a text nor a path.
    """
    return text(name, os.fspath(value) if isinstance(value, os.PathLike) else value, example)


def dtype_name(value: Any) -> str:
    """The name of a dtype: `torch.float16` is `float16`.

    Raises:
        BadInput: It is neither a text nor a dtype.
    """
    import torch

    word = str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
    return text("dtype", word, '"float16", or torch.float16')


def seed(value: Any) -> int:
    """A seed that Python, NumPy and torch all take.

    Raises:
        BadInput: It is not a whole number, or outside their common range.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_SEED:
        return value
    raise BadInput(f"seed is {_shown(value)}; give a whole number from 0 to {LARGEST_SEED}.")


def probe_ids(value: str | Sequence[str]) -> list[str]:
    """Ids of probes, in upper or lower case; a single text is one probe.

    Raises:
        BadInput: No probe has this id.
    """
    chosen = (value,) if isinstance(value, str) else value
    return [find(text("probes", probe, '"SDPA001"')).id for probe in chosen]


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"a {type(value).__name__}"
