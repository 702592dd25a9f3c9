"""Where records come from: the environments of journals, told apart, and the records that count in each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpsdiag.benching.journal.record import Record

if TYPE_CHECKING:
    from mpsdiag.benching.journal.journal import Journal

# Facts of an environment that differ between two askings on one machine: they do not tell machines apart.
_UNSTEADY = frozenset({"mps_built", "mps_available", "mps_usable", "mps_note", "default_attention"})


@dataclass(frozen=True)
class Place:
    """One environment that something was measured in; `label` is short and made for headings."""

    number: int
    label: str
    facts: tuple[tuple[str, str], ...]

    @property
    def letter(self) -> str:
        """Its short name: A, B, ... Z, 27, 28, ..."""
        return chr(ord("A") + self.number) if self.number < 26 else str(self.number + 1)


@dataclass(frozen=True)
class Kept:
    """The records of some journals that count.

    Attributes:
        places: The environments, in the order in which they first appear.
        rounds: The newest record of every round, by number of the place and key of the cell.
        twice: How many rounds were recorded more than once.
    """

    places: tuple[Place, ...]
    rounds: dict[tuple[int, str], dict[int, Record]]
    twice: int

    def by_place(self) -> list[tuple[Place, list[Record]]]:
        """Every record that counts, apart by environment."""
        found: list[tuple[Place, list[Record]]] = [(place, []) for place in self.places]
        for (number, _), rounds in self.rounds.items():
            found[number][1].extend(rounds[one] for one in sorted(rounds))
        return found


def keep(journals: Sequence[Journal]) -> Kept:
    """Sort the records of journals by environment and cell."""
    places: list[Place] = []
    known: dict[str, Place] = {}
    kept: dict[tuple[int, str], dict[int, Record]] = {}
    twice = 0
    for journal in journals:
        last: tuple[dict[str, Any], Place] | None = None
        for record in journal.records:
            environment = record.environment or journal.header.environment
            if last is None or (last[0] is not environment and last[0] != environment):
                last = (environment, _place(environment, known, places))
            rounds = kept.setdefault((last[1].number, record.key), {})
            older = rounds.get(record.round)
            twice += older is not None
            if older is None or record.started >= older.started:
                rounds[record.round] = record
    return Kept(tuple(places), kept, twice)


def kind(environment: dict[str, Any]) -> str:
    """The same text for machines that cannot be told apart by what was asked of them."""
    steady = {name: value for name, value in environment.items() if name not in _UNSTEADY}
    return repr(sorted(steady.items(), key=lambda item: item[0]))


def _place(environment: dict[str, Any], known: dict[str, Place], places: list[Place]) -> Place:
    identity = kind(environment)
    if identity not in known:
        known[identity] = Place(number=len(places), label=label(environment), facts=tuple(_flat(environment)))
        places.append(known[identity])
    return known[identity]


def label(environment: dict[str, Any]) -> str:
    """An environment in a few words: chip, system, versions."""
    versions = environment.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    parts = [environment.get("chip") or environment.get("machine"), environment.get("system")]
    parts += [f"{name} {versions[name]}" for name in ("torch", "transformers") if versions.get(name)]
    if environment.get("cuda"):
        parts.append(f"CUDA {environment['cuda']}")
    return ", ".join(str(part) for part in parts if part) or "environment not recorded"


def _flat(environment: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in environment.items():
        if isinstance(value, dict):
            yield from _flat(value, prefix="" if name in {"versions", "variables"} else f"{prefix}{name}.")
        elif value is not None:
            text = f"{value / 2**30:.1f} GiB" if name == "memory" and isinstance(value, int) else str(value)
            yield f"{prefix}{name}", text
