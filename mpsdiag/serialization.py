"""JSON that is always valid, and files that are replaced completely or not at all."""

import contextlib
import dataclasses
import errno
import json
import math
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from mpsdiag.errors import BadInput

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_PIPES: dict[Path, bytes] = {}
LARGEST_FILE: Final = 2**31
"""Largest size, in bytes, of a file that is read at once: journals, matrix files, documents, configs."""
PIECE = 2**20
"""Least number of characters written at once; a piece ends at the end of a line."""
_STREAM = re.compile(r"/dev/(stdin|stdout|stderr|fd/\d+)|/proc/(self|\d+)/fd/\d+")


def read_toml(path: Path) -> dict[str, Any]:
    """A table of the package."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # pragma: no cover - the same parser under its older name
        import tomli as tomllib

    return tomllib.loads(path.read_text(encoding="utf-8"))


def jsonable(value: Any) -> Any:
    """Turn a value into what JSON can hold; NaN and the infinities become the strings "nan", "inf", "-inf"."""
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if value is None or isinstance(value, bool | int | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):
        return jsonable(value.model_dump())
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    return str(value)


def number(value: Any) -> float:
    """Read a number that `jsonable` wrote ("nan", "inf" and "-inf" too). Raises ValueError if it is not a number."""
    if isinstance(value, str) and value in _NON_FINITE:
        return _NON_FINITE[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")  # noqa: TRY004 - pydantic turns ValueError into a message
    return float(value)


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Write a value as strict JSON (no bare NaN), on one line unless `indent` is given, safe for a terminal."""
    text = json.dumps(jsonable(value), allow_nan=False, ensure_ascii=False, indent=indent)
    strange = {one for one in set(text) if not (one.isprintable() or one == "\n" or "\ud800" <= one <= "\udfff")}
    return text.translate({ord(one): json.dumps(one)[1:-1] for one in strange}) if strange else text


def readable(text: str) -> str:
    """The text as it was typed, even if the locale could not decode it: UTF-8, which any file can hold.

    Python passes undecodable bytes of arguments and file names on as lone surrogates (PEP 383).
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:  # A surrogate that does not stand for a byte.
        return text.encode("utf-8", "replace").decode("utf-8")


def _pieces(text: str | bytes) -> Iterator[bytes]:
    """The text as any file can hold it, some lines at a time, so that a large one is never copied whole."""
    if isinstance(text, bytes):
        yield text
        return
    start = 0
    while start < len(text):
        end = text.find("\n", start + PIECE) + 1 or len(text)
        yield readable(text[start:end]).encode()
        start = end


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a whole file: the new one is written beside it, flushed, synced, then renamed over it.

    A link stays a link; its target is replaced. Devices and pipes (such as /dev/stdout) are written into.
    Raises BadInput if the folder cannot be created or written to; the message names it.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        if _is_written_into(path):
            _write_into(path, content)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        stream = temporary.open("xb")
    except OSError as problem:
        why = "nobody reads this pipe" if problem.errno == errno.ENXIO else problem.strerror
        raise BadInput(f"Cannot write {path}: {why}. Choose a folder you may write to.") from problem
    try:
        with stream:
            stream.writelines(_pieces(content))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    except BaseException as problem:
        temporary.unlink(missing_ok=True)
        if isinstance(problem, OSError):
            raise BadInput(f"Cannot write {path}: {problem.strerror}. The old file is untouched.") from problem
        raise


def read_file(path: Path, most: int = -1) -> bytes:
    """The bytes of a file, up to a limit; those of a pipe are kept, because it gives them only once.

    Raises BadInput as `require_file` does, or if the whole file is wanted and is larger than `LARGEST_FILE`; OSError if
    it cannot be read.
    """
    require_file(path)
    if path.is_fifo():
        if path not in _PIPES:
            _PIPES[path] = path.read_bytes()
        return _PIPES[path] if most < 0 else _PIPES[path][:most]
    if most < 0:
        _require_moderate(path)
    with path.open("rb") as stream:
        return stream.read(most)


def require_files(path: Path) -> None:
    """Refuse a folder of a model or of data in which a library would wait for a pipe, or read endlessly.

    Subfolders are searched too. Raises BadInput as `require_file` does, or if a JSON file in it is larger than
    `LARGEST_FILE`.
    """
    require_file(path)
    if path.is_dir():
        for one in (*path.iterdir(), *path.glob("*/*")):
            require_file(one)
            if one.suffix == ".json":
                _require_moderate(one)


def _require_moderate(path: Path) -> None:
    with contextlib.suppress(OSError):  # the code that opens it reports that it is missing
        if path.stat().st_size > LARGEST_FILE:
            raise BadInput(f"{path} is larger than {LARGEST_FILE >> 30} GiB. Give a smaller file.")


def require_file(path: Path) -> None:
    """Refuse what could be read endlessly or block: a device, or a named pipe that may never be written to.

    Raises BadInput for these. A pipe of this process (`<(...)`) is allowed, and a missing path is ignored.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or (stat.S_ISFIFO(mode) and _STREAM.fullmatch(str(path))):
        return
    raise BadInput(f"{path} is a device, a socket or a named pipe, not a file. Give a file.")


def _is_written_into(path: Path) -> bool:
    """Whether the path exists and must not be replaced; a stream of this process may be a file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or _STREAM.fullmatch(str(path)) is not None


def _write_into(path: Path, content: str | bytes) -> None:
    # Never created, never truncated: `>> file` keeps its content. Nothing waits for a pipe without a reader.
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
    os.set_blocking(handle, True)
    with os.fdopen(handle, "wb") as stream:
        stream.writelines(_pieces(content))
