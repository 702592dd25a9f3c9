"""Libraries that cannot be imported: which, why, and how to reinstall them. Needs only the standard library."""

import importlib
import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Any, Final

from mpsdiag.errors import first_line

# Dependencies first: the first broken one is the one to repair.
LIBRARIES: Final = (
    "numpy",
    "pydantic",
    "psutil",
    "torch",
    "safetensors",
    "tokenizers",
    "transformers",
    "accelerate",
    "datasets",
    "pandas",
)
MISSING: Final = "not installed"


def broken(names: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Import libraries, and give the problem of those that fail: `not installed`, or the error."""
    found = {}
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as problem:  # noqa: BLE001, PERF203 - a broken library may raise anything
            absent = isinstance(problem, ModuleNotFoundError) and problem.name == name
            found[name] = MISSING if absent else f"{type(problem).__name__}: {first_line(problem)}"
    return found


def explained(problem: BaseException) -> str | None:
    """A sentence about the broken library behind an exception; None if all of them can be imported."""
    found = broken()
    if not found:
        return None
    name, what = next(iter(found.items()))
    if what == MISSING:
        return f"{name} is not installed, and this command needs it. Install it: pip install {name}"
    seen = f"; seen as {type(problem).__name__}" if type(problem).__name__ not in what else ""
    return (
        f"{name} cannot be imported here ({what}{seen}). Reinstall it: pip install --force-reinstall --no-deps {name}"
    )


def version(name: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def facts() -> dict[str, Any]:
    """What is known about this machine if even the libraries that describe it are broken."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("mpsdiag", *LIBRARIES)},
    }
