"""Run by every Python that `mpsdiag run` starts, and by those they start: waits for torch, then acts.

Python imports the first `sitecustomize` on its path, which is this one; the one it hides is run first. Only the
standard library is used, and mpsdiag itself is not imported before torch is, so a process without torch pays for
one small file.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_HERE = Path(__file__).resolve().parent


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
            f"mpsdiag: not installed in {sys.executable}, so nothing is in place there. "
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


if __name__ == "sitecustomize":
    try:
        _run_hidden()
    finally:
        _wait()
