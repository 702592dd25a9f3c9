"""Seeded text of very different line lengths, so that batches need padding: nothing is downloaded."""

from __future__ import annotations

import random
from typing import Final

_SUBJECTS: Final = ("the lamp", "a heron", "the second engine", "my neighbour", "an old map", "the river", "she", "he")
_VERBS: Final = ("carries", "forgets", "measures", "repairs", "follows", "paints", "counts", "answers")
_OBJECTS: Final = (
    "the harbour",
    "a broken clock",
    "seven letters",
    "the northern road",
    "every window",
    "salt",
    "rain",
)
_LINKS: Final = ("while", "because", "and then", "although", "until", "before")


def _clause(random_: random.Random) -> str:
    return f"{random_.choice(_SUBJECTS)} {random_.choice(_VERBS)} {random_.choice(_OBJECTS)}"


def _line(random_: random.Random) -> str:
    # Lengths spread over two orders of magnitude: 1 to 48 clauses, short ones often.
    clauses = min(48, 1 + int(random_.paretovariate(0.7)))
    parts = [_clause(random_)]
    for _ in range(clauses - 1):
        parts.append(random_.choice(_LINKS))
        parts.append(_clause(random_))
    return " ".join(parts).capitalize() + "."


def synthetic_texts(count: int = 256, *, seed: int = 0, split: str = "train") -> list[str]:
    """Make `count` lines of text; the same arguments give the same lines on every machine."""
    random_ = random.Random(f"mpsdiag:{split}:{seed}")
    return [_line(random_) for _ in range(count)]
