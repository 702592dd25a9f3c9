"""Environments of other releases, built by `bisect`: where they are, what is in them, what runs in them."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from mpsdiag.environment import PACKAGES
from mpsdiag.errors import BadInput, nearest

MARKER: Final = "mpsdiag.json"
"""Written last: a folder without it is only half built."""
# Python would read these in the environment too, and bypass its own packages.
_NOT_HANDED_ON: Final = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONSTARTUP", "__PYVENV_LAUNCHER__")


class Built(BaseModel):
    """A finished environment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The name of its folder; a value of the axis `environment` of `bench`."""
    python: str
    requirements: tuple[str, ...]
    overridden: bool = False
    """The resolver refused these releases and was overruled: the environment may fail for that reason alone."""
    freeze: tuple[str, ...] = ()
    """Everything installed, as `pip freeze` prints it."""

    def versions(self) -> dict[str, str]:
        """Installed versions by name."""
        return dict(line.split("==", 1) for line in self.freeze if "==" in line)


def cache_folder() -> Path:
    """Folder of the environments: below MPSDIAG_CACHE, or in the system's cache folder."""
    if own := os.environ.get("MPSDIAG_CACHE"):
        return Path(own) / "environments"
    system = "~/Library/Caches" if sys.platform == "darwin" else os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(system).expanduser() / "mpsdiag" / "environments"


def read(folder: Path) -> Built | None:
    """The environment in a folder; None if there is none, or only a half-built one."""
    try:
        built = Built.model_validate_json((folder / MARKER).read_bytes())
    except (OSError, ValidationError):
        return None
    return built if (folder / "bin" / "python").exists() else None


def find(name: str) -> Built:
    """The environment of this name."""
    built = read(cache_folder() / name)
    if built is None:
        names = sorted(path.name for path in cache_folder().glob("*") if read(path) is not None)
        hint = nearest(name, names) if names else "There are none yet: `mpsdiag bisect` builds them."
        raise BadInput(f"There is no environment '{name}' in {cache_folder()}. {hint}")
    return built


def versions_in(name: str | None, here: Mapping[str, str]) -> dict[str, str]:
    """Versions of torch and transformers in an environment; those `here` if no environment is named."""
    if name is None:
        return dict(here)
    inside = find(name).versions()
    return {package: inside.get(package, "missing") for package in here}


def facts_in(name: str | None, here: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of this machine with the Python and the versions of an environment."""
    if name is None:
        return dict(here)
    built = find(name)
    inside = built.versions()
    versions = {one: inside[one] for one in PACKAGES if one in inside}
    return {**here, "python": built.python, "versions": versions}


def variables_in(folder: Path) -> dict[str, str]:
    """Environment variables for a command: the environment's programs come first, and only its packages are seen."""
    kept = {name: text for name, text in os.environ.items() if name not in _NOT_HANDED_ON}
    path = os.pathsep.join([str(folder / "bin"), kept.get("PATH", os.defpath)])
    return {**kept, "PATH": path, "VIRTUAL_ENV": str(folder), "PYTHONUNBUFFERED": "1"}
