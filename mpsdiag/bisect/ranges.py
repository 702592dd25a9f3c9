"""The releases on the command line: the range of the axis, and the pins."""

from collections.abc import Iterable
from importlib import metadata
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from mpsdiag.errors import BadInput

PINNED: Final = ("torch", "transformers", "accelerate")
"""Pinned to what is installed here, unless --pin names another release. Their extras are never asked for."""


def parse_range(axis: str, text: str, *, nightly: bool = False) -> tuple[Version, Version]:
    """Read a range such as `2.5..2.10`: two different releases, the older one first."""
    low, dots, high = text.partition("..")
    if not dots:
        raise BadInput(f"--{axis} '{text}' is not a range. Write the two ends, such as {_example(axis)}.")
    ends = [_version(axis, end) for end in (low, high)]
    if ends[0] > ends[1]:
        raise BadInput(f"--{axis} {text} is upside down. Write the older release first: {high}..{low}.")
    if ends[0] == ends[1]:
        raise BadInput(f"--{axis} {text} is one release. A search needs two, such as {_example(axis)}.")
    for end in ends:
        if end.is_prerelease and not nightly:
            raise BadInput(f"--{axis} {text}: {end} is a nightly build or a pre-release. Add --nightly.")
    return ends[0], ends[1]


def parse_pins(axis: str, texts: Iterable[str]) -> list[str]:
    """Read pins such as `transformers==4.57.6`, and add those of what is installed here, in a fixed order."""
    pins: dict[str, str] = {}
    for text in texts:
        try:
            read = Requirement(text)
        except InvalidRequirement as problem:
            raise BadInput(f"--pin '{text}' is not a requirement. Write --pin NAME==VERSION.") from problem
        name = str(canonicalize_name(read.name))
        exact = [one.version for one in read.specifier if one.operator == "==" and "*" not in one.version]
        if len(exact) != 1 or len(read.specifier) != 1 or read.extras or read.marker:
            raise BadInput(f"--pin '{text}' does not name one release. Write --pin {name}==VERSION.")
        if name == axis:
            raise BadInput(f"--pin {text}: {axis} is what moves. Pin another package, or leave this out.")
        if name in pins:
            raise BadInput(f"--pin {name} is given twice. Give it once.")
        pins[name] = f"{name}=={exact[0]}"
    for name in PINNED:
        if name != axis and name not in pins:
            try:
                pins[name] = f"{name}=={Version(metadata.version(name)).public}"
            except metadata.PackageNotFoundError:
                continue
    return sorted(pins.values())


def _version(axis: str, text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion as problem:
        raise BadInput(f"--{axis}: '{text}' is not a version. Write a range such as {_example(axis)}.") from problem


def _example(axis: str) -> str:
    return "2.5..2.10" if axis == "torch" else "4.52.4..5.24"
