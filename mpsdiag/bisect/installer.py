"""The use of uv: which releases exist, what is installed where, and what its refusals mean.

uv reads the user's own settings (indexes, logins, constraints); the only address here is that of torch's nightly
builds.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.version import Version

from mpsdiag.errors import BadInput, CannotDecide, MpsdiagError

NIGHTLY_INDEX = "https://download.pytorch.org/whl/nightly/"
SETTINGS = (Path("/etc/uv/uv.toml"), Path("~/.config/uv/uv.toml"))
# Variables that decide what is installed. If one names an index, ours is not added.
_INDEX_NAMES = ("DEFAULT_INDEX", "INDEX", "INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "NO_INDEX", "TORCH_BACKEND")
_INDEX_VARIABLES = tuple(f"UV_{name}" for name in _INDEX_NAMES)
_OTHER_VARIABLES = ("UV_CONSTRAINT", "UV_OVERRIDE", "UV_EXCLUDE_NEWER", "UV_INDEX_STRATEGY", "UV_RESOLUTION")
_INDEX_SETTING = re.compile(
    r"^\s*(\[\[index\]\]|((extra-)?index(-url)?|find-links|no-index|torch-backend)\s*=)", re.MULTILINE
)
_NO_NETWORK = ("error sending request", "client error", "Failed to fetch", "timed out", "network was disabled")
_FULL_DISK = ("No space left on device", "Disk quota exceeded", "os error 28)")


class Impossible(MpsdiagError):  # noqa: N818 - an outcome of the resolver
    """These releases cannot be installed together (`conflict`), or not here; the text comes from uv."""

    def __init__(self, sentence: str, *, conflict: bool) -> None:
        super().__init__(sentence)
        self.conflict = conflict


def digits(value: object) -> str:
    """Sixteen hex digits that stand for a value of JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def user_settings() -> tuple[dict[str, str], bool]:
    """The user's settings of uv about indexes by name, and whether they name an index.

    They are hashed and never shown: they may hold logins.
    """
    found = {name: os.environ[name] for name in (*_INDEX_VARIABLES, *_OTHER_VARIABLES) if os.environ.get(name)}
    named = any(name in found for name in _INDEX_VARIABLES)
    own = os.environ.get("UV_CONFIG_FILE")
    for path in (*SETTINGS, *([Path(own)] if own else [])):
        with contextlib.suppress(OSError):
            found[str(path)] = path.expanduser().read_text(encoding="utf-8", errors="replace")
            named = named or _INDEX_SETTING.search(found[str(path)]) is not None
    return found, named


def find_uv() -> str:
    """Path of uv: the one of the extra `bisect`, or the one on PATH."""
    with contextlib.suppress(ImportError, FileNotFoundError):
        from uv import find_uv_bin

        return str(find_uv_bin())
    if (found := shutil.which("uv")) is None:
        raise BadInput(
            "bisect installs the releases with uv, which is missing: pip install 'mpsdiag[bisect]', or put uv on PATH."
        )
    return found


@dataclass
class Installer:
    """uv with one Python and one choice of indexes.

    `python` is a version such as `3.12` or the path of an interpreter, by default the one that runs mpsdiag.
    For the device `cpu`, torch's small CPU wheels are taken on Linux. `nightly` takes pre-releases, and
    torch's nightly index.
    """

    python: str | None = None
    device: str = "cpu"
    nightly: bool = False
    uv: str = field(default_factory=find_uv)
    interpreter: str = field(default="", init=False)
    python_version: str = field(init=False)
    options: list[str] = field(init=False)
    """What every resolution gets, besides the user's settings."""
    index: str = field(init=False)
    """Sixteen hex digits that stand for everything that decides what an index offers."""
    _running: set[subprocess.Popen[str]] = field(default_factory=set, init=False)
    _stopped: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        settings, named = user_settings()
        self.options = ["--only-binary", ":all:"]
        backend = "cpu" if sys.platform == "linux" and self.device == "cpu" else None
        if self.nightly:
            self.options += ["--prerelease", "allow"]
            if not named:
                kind = "" if self.device in {"cuda", "xpu"} else "cpu"
                self.options += ["--index", NIGHTLY_INDEX + kind, "--index-strategy", "unsafe-best-match"]
        elif backend and not named:
            self.options += ["--torch-backend", backend]
        self.index = digits([settings, self.options])
        self._find_python()

    def _find_python(self) -> None:
        asked = self.python or sys.executable
        try:
            with contextlib.suppress(Impossible):
                self.interpreter = self.call("python", "find", asked).strip()
            if not self.interpreter:  # not on this machine: uv may fetch it
                self.call("python", "install", asked)
                self.interpreter = self.call("python", "find", asked).strip()
        except Impossible as problem:
            raise BadInput(
                f"uv finds no Python '{asked}' ({problem}). Give a version such as --python 3.12, or a path."
            ) from problem
        words = ("-I", "-c", "import platform; print(platform.python_version())")
        self.python_version = subprocess.check_output([self.interpreter, *words], text=True).strip()

    def releases(self, name: str, low: Version, high: Version) -> list[Version]:
        """List the releases of a package from `low` to `high`, the oldest first; both ends must exist.

        Yanked releases and those without a wheel for this Python are not among them.
        """
        found: list[Version] = []
        below = f"<={high}"
        while (newest := self._newest(f"{name}>={low},{below}")) is not None:
            if not found and newest != high:
                break
            found.insert(0, newest)
            below = f"<{newest}"
        for end in (high, low):
            if end not in found:
                newest = self._newest(name)
                raise BadInput(
                    f"{name} {end} is not a release that can be installed here: the newest one with wheels for Python "
                    f"{self.python_version} is {newest or 'missing: the index has none'}, and yanked ones do not count."
                )
        return found

    def _newest(self, requirement: str) -> Version | None:
        """The newest release that fits a requirement on any platform; None if there is none."""
        words = ("pip", "compile", "-", "--no-deps", "--universal", "--no-header", "--no-annotate", "--quiet")
        python = ("--python", self.interpreter, "--python-version", self.python_version)
        try:
            answer = self.call(*words, *python, *self.options, text=f"{requirement}\n")
        except Impossible as problem:
            if not problem.conflict:
                raise CannotDecide(f"uv cannot list the releases: {problem}") from problem
            return None
        pinned = re.search(r"^[\w.-]+==([^\s;]+)", answer, re.MULTILINE)
        return Version(Version(pinned.group(1)).public) if pinned else None

    def install(self, folder: Path, requirements: Sequence[str], *, override: bool, keep: int) -> list[str]:
        """Make an environment, install into it, and list its packages, as `pip freeze` prints them.

        With `override` the requirements overrule what the packages require of each other. `keep` is a file
        descriptor that stays open in uv, so that its lock outlives this process.
        """
        python = folder / "bin" / "python"
        self.call("venv", "--quiet", "--clear", "--python", self.interpreter, str(folder), keep=keep)
        words = ["pip", "install", "--quiet", "--python", str(python), *self.options]
        if override:
            overrides = folder / "overrides.txt"
            overrides.write_text("\n".join(requirements), encoding="utf-8")
            words += ["--override", str(overrides)]
        self.call(*words, *requirements, keep=keep)
        return self.call("pip", "freeze", "--python", str(python), keep=keep).splitlines()

    def call(self, *words: str, text: str = "", keep: int | None = None) -> str:
        """Run uv and return what it prints.

        Raises Impossible with its message if it refuses, CannotDecide without a network or on a full
        disk.
        """
        if self._stopped:
            raise Impossible("the search is over", conflict=False)
        variables = {k: v for k, v in os.environ.items() if k not in {"VIRTUAL_ENV", "UV_PYTHON"}}
        with subprocess.Popen(
            [self.uv, "--no-progress", "--color", "never", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=variables,
            pass_fds=() if keep is None else (keep,),
        ) as process:
            self._running.add(process)
            try:
                answer, complaint = process.communicate(text)
            except BaseException:
                process.kill()
                raise
            finally:
                self._running.discard(process)
        if process.returncode == 0:
            return answer
        if any(sign in complaint for sign in _FULL_DISK):
            raise CannotDecide("The disk is full: uv cannot write the environment. Free some space and repeat.")
        if any(sign in complaint for sign in _NO_NETWORK):
            raise CannotDecide(
                f"uv cannot reach the package index ({_sentence(complaint, 200)}). Check the network, or set "
                "UV_DEFAULT_INDEX or UV_FIND_LINKS to an index that can be reached."
            )
        raise Impossible(_sentence(complaint), conflict="No solution found" in complaint)

    def stop(self) -> None:
        """End every running uv, and start no more."""
        self._stopped = True
        for process in list(self._running):
            process.terminate()


def _sentence(complaint: str, longest: int = 600) -> str:
    """The resolver's message on one line, without its frame and its hints."""
    lines = complaint.partition("\nhint:")[0].splitlines()
    words = [re.sub(r"^\s*(×|╰─▶|error:|cause:)\s*", "", line).strip() for line in lines]
    text = " ".join(word for word in words if word and not word.startswith("No solution found"))
    return text[:longest] or "uv gave no reason"
