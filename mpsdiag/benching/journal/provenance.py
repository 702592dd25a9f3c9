"""Where records come from: the environments of journals, and what tells them apart."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

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


def kind(environment: dict[str, Any]) -> str:
    """The same text for machines whose facts do not differ."""
    steady = {name: value for name, value in environment.items() if name not in _UNSTEADY}
    return repr(sorted(steady.items(), key=lambda item: item[0]))


def place(environment: dict[str, Any], places: dict[str, Place]) -> Place:
    """The place of an environment among those known by their kind; a new one is added to them."""
    identity = kind(environment)
    if identity not in places:
        places[identity] = Place(len(places), label(environment), tuple(_flat(environment)))
    return places[identity]


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
