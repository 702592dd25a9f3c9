"""Run by every Python that `mpsdiag run` starts, and by those they start: waits for torch, then acts.

Python imports the first `sitecustomize` on its path, which is this one; the one it hides is run first. Only the
standard library is used, and mpsdiag itself is not imported before torch is, so a process without torch pays for
one small file. A Python started with -I, -E, -S, or with another environment, never reads this file; the process that
starts it reports that.
"""

import importlib.machinery
import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

_HERE = Path(__file__).resolve().parent
_PYTHON = re.compile(r"(.*/)?(python|pypy)[\d.]*")
# Audit events of starting a process, with the positions of its command and its environment among their arguments.
_STARTS = {"subprocess.Popen": (1, 3), "os.exec": (1, 2), "os.posix_spawn": (1, 2), "os.system": (0, None)}
_NAMED: set[str] = set()


def _load(name: str, spec: importlib.machinery.ModuleSpec | None) -> ModuleType | None:
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _run_hidden() -> None:
    """Take this folder off the path, where the script need not see it, and run the `sitecustomize` behind it."""
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != _HERE]
    _load(__name__, importlib.machinery.PathFinder.find_spec(__name__, sys.path))


def _act() -> None:
    try:
        from mpsdiag.fixes.startup import begin
    except ImportError as problem:
        if problem.name is None or problem.name.split(".")[0] != "mpsdiag":
            raise
        sys.stderr.write(
            f"mpsdiag: not installed in {sys.executable}, so it has no effect there. "
            "Install mpsdiag in that environment too.\n"
        )
        return
    begin()


def _wait() -> None:
    # Loaded by its path: the package may not be there, or be slow to find, in the Python that runs this.
    path = _HERE.parent / "imports.py"
    imports = _load("_mpsdiag_imports", importlib.util.spec_from_file_location("_mpsdiag_imports", path))
    if imports is not None:
        imports.when_imported("torch", _act)


def _watch_starts(event: str, given: tuple[Any, ...]) -> None:
    """Name a Python that is about to start and that mpsdiag cannot reach, once for each command."""
    if event not in _STARTS:
        return
    words_at, environment_at = _STARTS[event]
    try:
        words = _words(given[words_at])
        option = _shuts_out(words)
        environ = None if environment_at is None else given[environment_at]
        path = os.environ.get("PYTHONPATH", "") if environ is None else str(dict(environ))
        why = f"{option} keeps it out" if option else "" if str(_HERE) in path else "PYTHONPATH is not passed on to it"
        command = shlex.join(words)[:200]
        if option is None or not why or command in _NAMED:
            return
        _NAMED.add(command)
        shown = command if command.isprintable() else ascii(command)
        sys.stderr.write(f"mpsdiag: nothing can be installed in `{shown}`, which the script starts: {why}.\n")
    except (AttributeError, LookupError, OSError, TypeError, ValueError):
        return  # whatever these words are: the script's own error says it


def _words(given: Any) -> list[str]:
    """The words of a command; those that a shell will read, or that a script's first line holds, are taken apart."""
    one = isinstance(given, str | bytes | os.PathLike)
    words = shlex.split(os.fsdecode(given)) if one else [*map(os.fsdecode, given)]
    if len(words) > 2 and words[1] == "-c" and Path(words[0]).name.endswith("sh"):
        return shlex.split(words[2])
    if words and os.sep in words[0] and Path(words[0]).is_file():
        with Path(words[0]).open("rb") as file:
            first = file.readline(200)
        if first.startswith(b"#!"):
            return [*shlex.split(os.fsdecode(first[2:].strip())), *words]
    return words


def _shuts_out(words: Iterable[str]) -> str | None:
    """The option that keeps a Python from reading this file; empty if there is none, None if no Python is started."""
    rest = iter(words)
    if not any(_PYTHON.fullmatch(word) for word in rest):
        return None
    for word in rest:  # what follows the name of the interpreter
        if not re.match(r"-\w", word):
            return ""
        for number, letter in enumerate(word[1:], start=2):
            if letter in "IES":
                return f"-{letter}"
            if letter in "cm":
                return ""
            if letter in "WX":  # their value is the rest of the word, or the next one
                if number == len(word):
                    next(rest, "")
                break
    return ""


if __name__ == "sitecustomize":
    sys.addaudithook(_watch_starts)
    try:
        _run_hidden()
    finally:
        _wait()
