"""Apply each mutation of mutations.toml to a copy of the tree and report those that no test notices.

Run: python tests/mutations/apply_mutations.py [--only TEXT]   (`make mutations`)
Exit code: 0 all are noticed, 1 some survive, 2 the list does not fit the code any more, or its tests fail unmutated.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("mutations.toml")
COPIED = ("mpsdiag", "tests", "docs", "benchmarks", "pyproject.toml", "README.md", "train.py", "constraints.txt")
LIMIT_SECONDS = 1800  # for all tests of the list together, on a machine that is in use


@dataclass(frozen=True)
class Mutation:
    """One change of `file`: `old`, which stands in it once, becomes `new`; one of `tests` must fail then."""

    name: str
    file: str
    old: str
    new: str
    tests: list[str]


def mutations() -> list[Mutation]:
    """The list, in its order."""
    return [Mutation(**entry) for entry in tomllib.loads(LIST.read_text(encoding="utf-8"))["mutation"]]


def misfit(mutation: Mutation, root: Path = ROOT) -> str | None:
    """Why a mutation cannot be applied to a tree, or None."""
    path = root / mutation.file
    if not path.is_file():
        return f"{mutation.name}: {mutation.file} does not exist."
    found = path.read_text(encoding="utf-8").count(mutation.old)
    if found != 1:
        return f"{mutation.name}: {mutation.file} holds this {found} times instead of once: {mutation.old!r}"
    missing = [test for test in mutation.tests if not (root / test.partition("::")[0]).exists()]
    return f"{mutation.name}: no such test: {', '.join(missing)}" if missing or not mutation.tests else None


def main() -> int:
    """Apply the mutations one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="Those whose name holds this text.")
    only = parser.parse_args().only
    chosen = [mutation for mutation in mutations() if only in mutation.name]
    misfits = [text for mutation in chosen if (text := misfit(mutation))]
    if misfits or not chosen:
        print("\n".join(misfits) or f"No mutation is called '{only}'.")
        return 2
    with tempfile.TemporaryDirectory(prefix="mpsdiag-mutations-") as folder:
        copy = Path(folder)
        _copy_tree(copy)
        tests = sorted({test for mutation in chosen for test in mutation.tests})
        if not _pass(copy, tests):
            print("Some of these tests fail without any mutation: " + " ".join(tests))
            return 2
        survivors = [mutation.name for mutation in chosen if _survives(copy, mutation)]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutations are noticed.")
    return 1 if survivors else 0


def _copy_tree(copy: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy(source, copy / name)


def _survives(copy: Path, mutation: Mutation) -> bool:
    path = copy / mutation.file
    original = path.read_text(encoding="utf-8")
    path.write_text(original.replace(mutation.old, mutation.new), encoding="utf-8")
    survives = _pass(copy, mutation.tests)
    path.write_text(original, encoding="utf-8")
    print(f"{'SURVIVES' if survives else 'noticed '}  {mutation.name}", flush=True)
    return survives


def _pass(copy: Path, tests: list[str]) -> bool:
    """Whether tests pass in the copy; running out of time counts as a failure."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest ended with exit code {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
