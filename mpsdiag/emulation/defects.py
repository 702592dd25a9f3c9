"""Every known defect of attention on MPS, read from `defects.toml`: one table for the emulation and for the probes.

`SDPA0NN` is entry BNN of the list of known defects. Defects of Apple's graph belong to a torch release and a macOS: the
graph is compiled by the system.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from mpsdiag.emulation.releases import between

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Hits = Literal["training", "evaluation", "both"]
FILE: Final = Path(__file__).with_name("defects.toml")


@dataclass(frozen=True)
class Remedy:
    """What to do: one or two sentences, and lines to paste into a shell, none where only the code can be changed."""

    text: str
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Defect:
    """One known defect; `defects.toml` explains each field.

    `releases` are minor torch releases such as `2.8`, `where` the same in words; `mechanism` is None where the
    emulation cannot show the defect.
    """

    id: str
    title: str
    symptom: str
    upstream: tuple[str, ...]
    where: str
    releases: tuple[str, ...]
    fixed: str
    hits: Hits
    remedy: Remedy
    bad: str
    good: str
    level: Literal[1, 2, 3] = 3
    isolated: bool = False
    first_macos: int | None = None
    last_macos: int | None = None
    reached_from_macos: int | None = None
    training_releases: tuple[str, ...] = ()
    mechanism: str | None = None
    never_run: str | None = None


def _read(name: str, entry: dict[str, Any]) -> Defect:
    where = entry.pop("releases", "none released" if "never_run" in entry else "not established")
    return Defect(
        id=name,
        where=where,
        releases=_named(where),
        training_releases=_named(entry.pop("training_releases", "")),
        upstream=tuple(entry.pop("upstream")),
        remedy=Remedy(entry.pop("remedy"), tuple(entry.pop("commands", ()))),
        **entry,
    )


def _named(where: str) -> tuple[str, ...]:
    """The releases of `2.5 to 2.6, 2.10 to 2.15`; none of words without a number."""
    spans = [span.split(" to ") for span in where.split(", ") if span.startswith("2.")]
    return tuple(release for span in spans for release in between(span[0], span[-1]))


KNOWN: Final[Mapping[str, Defect]] = MappingProxyType(
    {name: _read(name, entry) for name, entry in tomllib.loads(FILE.read_text(encoding="utf-8")).items()}
)
"""All of them by id."""
DEFECTS: Final[Mapping[str, Defect]] = MappingProxyType(
    {name: defect for name, defect in KNOWN.items() if defect.mechanism is not None}
)
"""Those that the emulation can show."""


def defects_of(release: str, macos: int = 15) -> tuple[str, ...]:
    """The ids of the defects that the emulation shows for a minor release such as `2.8` on a macOS."""
    return tuple(
        name
        for name, defect in DEFECTS.items()
        if release in defect.releases and (defect.first_macos or macos) <= macos <= (defect.last_macos or macos)
    )
