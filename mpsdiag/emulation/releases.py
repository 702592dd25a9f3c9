"""Torch releases on MPS, as tables: which path each takes to which kernel generation, and its known defects.

Source of the paths: a dispatch table read from PyTorch's sources and from the released macOS wheels. Each release
has only its differences from the one before. The defects come from `defects.toml`, one table for the emulation and
the probes; `SDPA0NN` is entry BNN of the list of known defects. Defects of Apple's graph belong to a torch release
and a macOS version, because the system compiles the graph.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from mpsdiag.serialization import read_toml

Dropout = Literal["composite", "refused"]
General = Literal["none", "G1", "G2", "G3"]

VECTOR_QUERIES: Final = 8  # the vector kernels take up to this many queries, the prefill kernels more
TWO_PASS_KEYS: Final = 1024  # from this many keys on, the vector kernels work in two passes


@dataclass(frozen=True)
class Release:
    """How one torch release computes attention on MPS; its mistakes are in its defects."""

    name: str
    general: General = "none"
    """Generation of the graph inside the MPS operator; `none` if there is no operator yet."""
    contiguous_below: float = 0.0
    """Below this macOS the operator is used only for contiguous query, key and value."""
    dropout: Dropout = "composite"
    tiny_shift: bool = False  # float32 products get 1e-20 added on macOS 15+
    vector_dims: tuple[int, ...] = ()  # head dimensions of the vector kernels
    vector_everything: bool = False  # these take causal calls and float masks too, not only none or bool
    prefill_dims: tuple[int, ...] = ()  # head dimensions of the prefill kernels
    prefill_scales: Literal["query", "scores"] = "query"
    """What the prefill kernel multiplies by scale * log2(e): the query in its own dtype, or the float32 scores."""
    mpp_dims: tuple[int, ...] = ()  # those on Metal Performance Primitives (half types, macOS 26+)
    expands_mask: bool = False  # the mask gets the shape of the scores before it reaches a kernel
    shares_heads: bool = False
    """The operator repeats key and value heads itself, always; before, only with `enable_gqa`, ahead of the paths."""
    empty_is_zeros: bool = False  # an empty query or value gives zeros, whatever the rest is


def _table() -> dict[str, Release]:
    old = [Release(f"2.{minor}") for minor in range(5)]
    r5 = Release("2.5", general="G1", contiguous_below=math.inf)
    r6 = replace(r5, name="2.6", contiguous_below=15)
    r7 = replace(r6, name="2.7", expands_mask=True)
    r8 = replace(r7, name="2.8", tiny_shift=True, vector_dims=(64, 96, 128))
    r9 = replace(r8, name="2.9", general="G2")
    r10 = replace(r9, name="2.10", general="G3")
    r11 = replace(r10, name="2.11")
    r12 = replace(r11, name="2.12", contiguous_below=0)
    r13 = replace(
        r12,
        name="2.13",
        dropout="refused",
        vector_dims=(64, 96, 128, 256),
        vector_everything=True,
        prefill_dims=(32, 64, 72, 80, 96, 128, 256),
        shares_heads=True,
        empty_is_zeros=True,
    )
    r14 = replace(r13, name="2.14", prefill_scales="scores", mpp_dims=(64, 96, 128, 256))
    r15 = replace(r14, name="2.15")
    return {r.name: r for r in (*old, r5, r6, r7, r8, r9, r10, r11, r12, r13, r14, r15)}


TABLE: Final = _table()
RELEASES: Final[tuple[str, ...]] = tuple(TABLE)
"""The releases that can be emulated, oldest first."""


def between(first: str, last: str) -> tuple[str, ...]:
    """The releases from `first` to `last`, both included."""
    return RELEASES[RELEASES.index(first) : RELEASES.index(last) + 1]


Hits = Literal["training", "evaluation", "both"]
FILE: Final = Path(__file__).with_name("defects.toml")


@dataclass(frozen=True)
class Remedy:
    """What to do: one or two sentences, and lines to paste into a shell, if any help."""

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
    """The releases of a text such as `2.5 to 2.6, 2.10 to 2.15`; none for words without a number."""
    spans = [span.split(" to ") for span in where.split(", ") if span.startswith("2.")]
    return tuple(release for span in spans for release in between(span[0], span[-1]))


KNOWN: Final[Mapping[str, Defect]] = MappingProxyType(
    {name: _read(name, entry) for name, entry in read_toml(FILE).items()}
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
