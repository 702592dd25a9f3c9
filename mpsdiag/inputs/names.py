"""The meaning of a name on the command line: built in, a path on this machine, or a name on the hub.

Without a network the hub's cache is used, and anything missing fails in a second instead of after a minute of retries.
"""

import contextlib
import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from mpsdiag.errors import BadInput, first_line, nearest, one_of, path_problem
from mpsdiag.inputs.load_problems import described, known_problem
from mpsdiag.serialization import read_file, require_files
from mpsdiag.words import BUILTIN_DATASET, BUILTIN_MODELS

NameKind = Literal["builtin", "local", "hub"]

_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_FILE_SUFFIXES: Final = frozenset(
    [".txt", ".text", ".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".gz", ".zip", ".arrow"]
)
_CONNECT_SECONDS: Final = 5.0
_PROXIES: Final = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
# Where each library keeps the flag that its HF_HUB_OFFLINE variable sets at import.
_FLAGS: Final = (
    ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_HUB_OFFLINE"),
    ("transformers.utils.hub", "_is_offline_mode"),
)


POOLING: Final = ("cls", "mean", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean")
"""The pooling methods of sentence-transformers, which make one embedding from those of the tokens."""
# Its older releases have a switch for each, and put the embeddings of several one after the other, in this order.
_OLDER_POOLING: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def is_builtin_model(name: str) -> bool:
    """Whether the name is a built-in model, made from a config."""
    return name in BUILTIN_MODELS


def classify(kind: str, name: str) -> NameKind:
    """Distinguish a built-in name, a path and a hub name.

    Names that exist on disk are local; so are names written like a path (`./x`, `/x`, `a/b/c`, `x.txt`). Raises
    BadInput if the path does not exist, or if the name can be neither.
    """
    if not name.strip():
        raise BadInput(f"The {kind} name is empty. Give a built-in name, a path, or a hub name.")
    builtins = BUILTIN_MODELS if kind == "model" else (BUILTIN_DATASET,)
    if name in builtins:
        return "builtin"
    path = Path(name).expanduser()
    try:
        if path.exists():
            require_files(path)
            return "local"
    except OSError as problem:
        raise path_problem(problem, name) from problem
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
    """One sentence for something that could not be loaded: where it was looked for, and what to do."""
    if what != "dataset" and (problem_found := known_problem(what, name, problem)) is not None:
        return f"Cannot load the {what} from '{name}': {problem_found.reason}. {problem_found.advice}"
    first = described(problem)
    # It is there, or was found, and is not what it should be.
    if Path(name).expanduser().exists() or not isinstance(problem, OSError):
        return f"Cannot load the {what} '{name}': {first}."
    builtins = BUILTIN_MODELS if what != "dataset" else (BUILTIN_DATASET,)
    return (
        f"Cannot load the {what} '{name}': {first}. It is not a local path, so it was looked for on the hub and in its "
        f"cache. Without a network, give a local path or a built-in name. {nearest(name, builtins)}"
    )


def reachable(endpoint: str) -> bool:
    """Whether a host answers at its port. Behind a proxy this cannot be known, and the answer is yes."""
    if any(os.environ.get(name) for name in _PROXIES):
        return True
    parts = urlsplit(endpoint)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 443), timeout=_CONNECT_SECONDS):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def offline_if_unreachable(kind: str, name: str) -> Iterator[None]:
    """Inside this block the libraries look only into their caches, if the name is the hub's and it does not answer."""
    from huggingface_hub import constants

    if classify(kind, name) != "hub" or constants.HF_HUB_OFFLINE or reachable(constants.ENDPOINT):
        yield
        return
    changed: list[tuple[Any, str, Any]] = []
    try:
        for module_name, flag in _FLAGS:
            module = sys.modules.get(module_name)
            if module is not None and hasattr(module, flag):
                changed.append((module, flag, getattr(module, flag)))
                setattr(module, flag, True)
        yield
    finally:
        for module, flag, before in changed:
            setattr(module, flag, before)


def transformer_folder(name: str) -> str:
    """The folder of the model inside a sentence-transformers folder, whose parts `modules.json` lists; or the name."""
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return name
    parts = _parts(folder)
    return str(folder / parts[0]["path"]) if parts else name


def pooling_of(name: str) -> tuple[str, ...]:
    """How a sentence-transformers folder pools the embeddings of tokens; empty if it does not say.

    Raises BadInput if its pooling settings cannot be read, or name an unknown method.
    """
    folder = Path(name).expanduser()
    part = next((part["path"] for part in _parts(folder) if str(part.get("type")).endswith("Pooling")), None)
    if part is None:
        return ()
    file = folder / part / "config.json"
    try:
        settings = json.loads(read_file(file))
        named = settings.get("pooling_mode") or [way for key, way in _OLDER_POOLING.items() if settings.get(key)]
    except (OSError, ValueError, AttributeError) as problem:
        raise BadInput(f"Cannot read the pooling of '{name}' from {file}: {first_line(problem)}.") from problem
    return tuple(one_of("pooling mode", str(way), POOLING) for way in ([named] if isinstance(named, str) else named))


def _parts(folder: Path) -> list[dict[str, Any]]:
    """The parts inside a sentence-transformers folder, in order; none if it is another kind of folder."""
    try:
        listed = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        return [part for part in listed if ".." not in Path(part["path"]).parts]
    except (OSError, ValueError, LookupError, TypeError):
        return []
