"""The journal of a search: a header for each search, one line for each try, on disk before the next one starts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mpsdiag.benching.journal.journal import lines_of, loads, migrate, read_bytes
from mpsdiag.bisect.search import Find, Outcome
from mpsdiag.errors import BadInput
from mpsdiag.serialization import read_file

SCHEMA = 1
JOURNAL = "journal.jsonl"


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_: Literal[1] = Field(default=1, alias="schema")


class Search(_Line):
    """The header: what is searched, in which releases. `basis` and `listing` decide what a later run can reuse."""

    kind: Literal["bisect"] = "bisect"
    basis: str
    """Stands for the predicate with its files, the pins, Python, the indexes and the device."""
    listing: str
    """Stands for range, Python and indexes: if it is the same, the list of releases is taken from here."""
    mpsdiag: str
    command: str
    created: str
    axis: Literal["torch", "transformers"]
    releases: tuple[str, ...]
    pins: tuple[str, ...]
    find: Find | None
    predicate: str
    device: str
    python: str
    system: str

    def same_as(self, other: Search) -> bool:
        """Whether two headers differ in nothing but when and by which command they were written."""
        passing = {"command", "created", "mpsdiag"}
        return self.model_dump(exclude=passing) == other.model_dump(exclude=passing)

    def key(self, release: str) -> str:
        """Sixteen hex digits that name the try of a release."""
        return hashlib.sha256(f"{self.basis} {self.axis} {release}".encode()).hexdigest()[:16]


class Try(_Line):
    """One release, tested; durations in seconds."""

    kind: Literal["try"] = "try"
    key: str
    release: str
    outcome: Outcome
    reason: str
    exit_code: int | None = None
    signal: str | None = None
    seconds: float = 0.0
    """Duration of the predicate."""
    build_seconds: float = 0.0
    """Time spent waiting for the environment; near 0 if it existed."""
    environment: str | None = None
    overridden: bool = False
    freeze: tuple[str, ...] = ()
    python: str
    system: str
    device: str
    started: str
    log_tail: str = ""


@dataclass
class Tries:
    """The content of a journal: its last search, and the newest try of each key."""

    search: Search
    tries: dict[str, Try]
    warnings: list[str] = field(default_factory=list)


def is_bisect(path: Path) -> bool:
    """Whether a file, or the journal in a folder, was written by `bisect`."""
    try:
        begin = read_file(path / JOURNAL if path.is_dir() else path, 2**20)
        return loads(begin.partition(b"\n")[0]).get("kind") == "bisect"
    except (OSError, ValueError):
        return False


def read_tries(path: Path) -> Tries | None:
    """Read a journal of `bisect`, or that of a folder; None if there is none.

    A torn last line is dropped, every other bad line is left out with a warning that names it.
    """
    path, data = read_bytes(path)
    if not data:
        return None
    search: Search | None = None
    tries: dict[str, Try] = {}
    warnings: list[str] = []
    for where, line, cut in lines_of(data, str(path)):
        try:
            one = _parse(line, where)
        except ValueError:
            if search is None:
                break
            warnings.append(f"{where} is {'torn' if cut else 'not a try'} and was left out.")
            continue
        if isinstance(one, Search):
            search = one
        else:
            tries.pop(one.key, None)
            tries[one.key] = one
    if search is None:
        raise BadInput(f"{path} is not a journal of `mpsdiag bisect`. Choose another folder with --out.")
    return Tries(search, tries, warnings)


def _parse(line: bytes, where: str) -> Search | Try:
    """One line; BadInput where a newer mpsdiag wrote it, ValueError where it is neither of the two."""
    parsed = loads(line)
    kind = parsed.get("kind")
    if kind in {"bisect", "try"}:
        parsed = migrate(parsed, where, SCHEMA)
    return (Search if kind == "bisect" else Try).model_validate(parsed)
