"""Arguments of the Python interface, brought into the form used inside the package, or refused in a sentence."""

import os
from collections.abc import Sequence
from typing import Any

from mpsdiag.errors import BadInput
from mpsdiag.probes.known import find
from mpsdiag.words import LARGEST_SEED


def text(name: str, value: Any, example: str) -> str:
    """The text or path that an argument was given; BadInput for anything else, with `example` in the message."""
    found = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(found, str):
        return found
    raise BadInput(f"{name} is {_shown(value)}; give a text, such as {example}.")


def dtype_name(value: Any) -> str:
    """The name of a dtype: `torch.float16` is `float16`; BadInput for what is neither a text nor a dtype."""
    import torch

    word = str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
    return text("dtype", word, '"float16", or torch.float16')


def seed(value: Any) -> int:
    """A seed that Python, NumPy and torch all take; BadInput outside their common range."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_SEED:
        return value
    raise BadInput(f"seed is {_shown(value)}; give a whole number from 0 to {LARGEST_SEED}.")


def probe_ids(value: str | Sequence[str]) -> list[str]:
    """Ids of probes, in upper or lower case; a single text is one probe. BadInput for an id that no probe has."""
    chosen = (value,) if isinstance(value, str) else value
    return [find(text("probes", probe, '"SDPA001"')).id for probe in chosen]


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"a {type(value).__name__}"
