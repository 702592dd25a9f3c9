"""What a name on the command line means: built in, a path on this machine, or a name on the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, Literal

from mpsdiag.errors import BadInput, nearest
from mpsdiag.inputs.load_problems import described, known_problem
from mpsdiag.words import BUILTIN_DATASET, BUILTIN_MODELS

Kind = Literal["builtin", "local", "hub"]

_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_FILE_SUFFIXES: Final = (
    ".txt",
    ".text",
    ".jsonl",
    ".ndjson",
    ".json",
    ".parquet",
    ".csv",
    ".tsv",
    ".gz",
    ".zip",
    ".arrow",
)


def is_builtin_model(name: str) -> bool:
    """Say whether the name is one of the models that are made from a config."""
    return name in BUILTIN_MODELS


def classify(kind: str, name: str) -> Kind:
    """Tell a built-in name from a path and from a hub name.

    What exists on disk is local; what is written like a path (`./x`, `/x`, `a/b/c`, `x.txt`) is local too.

    Args:
        kind: `model` or `dataset`, for the sentence.
        name: What the user gave.

    Raises:
        BadInput: A path that does not exist, or a name that can be neither.
    """
    if not name.strip():
        raise BadInput(f"The {kind} name is empty. Give a built-in name, a path, or a hub name.")
    builtins = BUILTIN_MODELS if kind == "model" else (BUILTIN_DATASET,)
    if name in builtins:
        return "builtin"
    if Path(name).expanduser().exists():
        return "local"
    if _looks_like_path(name):
        raise BadInput(
            f"The {kind} path '{name}' does not exist. Check the spelling; relative paths start at the current folder."
        )
    if not _HUB_NAME.fullmatch(name):
        raise BadInput(f"'{name}' is neither a path nor a {kind} name. {nearest(name, builtins)}")
    return "hub"


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith((".", "~", os.sep))
        or "\\" in name
        or name.count("/") > 1
        or Path(name).suffix.lower() in _FILE_SUFFIXES
    )


def explain_missing(what: str, name: str, problem: BaseException) -> str:
    """One sentence for something that could not be loaded: where it was looked for, and what to do.

    Args:
        what: `model`, `tokenizer` or `dataset`.
        name: What the user gave.
        problem: The exception of the library that looked for it.
    """
    if what != "dataset" and (told := known_problem(what, name, problem)) is not None:
        return f"Cannot load the {what} from '{name}': {told.reason}. {told.advice}"
    first = described(problem)
    # It is there, or was found, and is not what it should be.
    if Path(name).expanduser().exists() or not isinstance(problem, OSError):
        return f"Cannot load the {what} '{name}': {first}."
    builtins = BUILTIN_MODELS if what != "dataset" else (BUILTIN_DATASET,)
    return (
        f"Cannot load the {what} '{name}': {first}. It is no local path, so it was looked for on the hub and in its "
        f"cache; without a network give a local path or a built-in name. {nearest(name, builtins)}"
    )
