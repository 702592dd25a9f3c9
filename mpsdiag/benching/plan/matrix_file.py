"""Reading a matrix file (TOML), with error messages that name the line."""

import json
import re
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mpsdiag.benching.plan.matrix import MatrixSpec
from mpsdiag.benching.plan.spec_errors import Place, validated
from mpsdiag.errors import BadInput
from mpsdiag.scenario.scenario import OLD_NAMES
from mpsdiag.serialization import read_file

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the same parser under its older name
    import tomli as tomllib

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_OLD: dict[int | str, int | str] = {new: old for old, new in OLD_NAMES.items()}


def load_matrix(path: Path | str, note: Callable[[str], None] = lambda _: None) -> MatrixSpec:
    """Read a matrix file; the matrix is named after the file unless it gives a name.

    Raises BadInput if the file does not exist, is not TOML, or is not a matrix; the message names file, line, key and
    the nearest word.
    """
    path = Path(path)
    try:
        text = read_file(path).decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError as problem:
        raise BadInput(f"There is no matrix file {path}. Ready ones are in benchmarks/.") from problem
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8 text"
        raise BadInput(f"Cannot read the matrix file {path}: {reason}.") from problem
    return parse_matrix(text, str(path), name=re.sub(r"[^A-Za-z0-9._-]", "-", path.stem).lstrip(".-_"), note=note)


def parse_matrix(text: str, file: str, *, name: str = "", note: Callable[[str], None] = lambda _: None) -> MatrixSpec:
    """Make a matrix from the text of a file. Raises BadInput as `load_matrix` does."""
    try:
        document: dict[str, Any] = tomllib.loads(text)
    except (ValueError, RecursionError) as problem:  # not only TOML errors: too many digits or brackets
        raise BadInput(f"{file} is not TOML: {problem}.") from problem
    if name:
        document.setdefault("name", name)
    old: dict[str, str] = {}
    document = _renamed(document, old)
    if old:
        words = ", ".join(f"'{before}' is now '{now}'" for before, now in old.items())
        note(f"{file}: {words}. The old names still work.")
    return validated(MatrixSpec, document, lambda place: where(text, file, place))


def _renamed(value: Any, old: dict[str, str]) -> Any:
    """Give keys their new names, and collect the old ones; a key that has both names is left alone."""
    if isinstance(value, list):
        return [_renamed(one, old) for one in value]
    if not isinstance(value, dict):
        return value
    names = {name: name if (new := OLD_NAMES.get(name, name)) in value else new for name in value}
    old.update({name: new for name, new in names.items() if name != new})
    return {names[name]: _renamed(one, old) for name, one in value.items()}


def where(text: str, file: str, place: Place) -> str:
    """Where a key is: `matrix.toml line 7, axes.attention`; without the line if it has none."""
    line = _line(text, place)
    if not line:
        old = tuple(_OLD.get(part, part) for part in place)
        line = _line(text, old)
        place = old if line else place
    names = [part if _BARE.fullmatch(part) else json.dumps(part) for part in place if isinstance(part, str)]
    return f"{file} line {line}, {'.'.join(names)}" if line else f"{file}, {'.'.join(names) or 'the matrix'}"


def _line(text: str, place: Place) -> int | None:
    """The first line of the statement that creates a key, however it is written.

    The parser knows every way to write a key (in a table, dotted, inline, quoted), so it is asked how many
    statements it takes until the key exists.
    """
    if not place:
        return None
    lines = text.replace("\r\n", "\n").split("\n")
    statements = list(_statements(lines))
    ends = [end for _, end in statements]
    number = bisect_left(ends, True, key=lambda end: _has(tomllib.loads("\n".join(lines[:end])), place))
    return statements[number][0] + 1 if number < len(statements) else None


def _statements(lines: list[str]) -> Iterator[tuple[int, int]]:
    """Where each statement begins and ends: the fewest lines after the last end that are valid TOML by themselves."""
    begin = 0
    for end in range(1, len(lines) + 1):
        try:
            tomllib.loads("\n".join(lines[begin:end]))
        except tomllib.TOMLDecodeError:
            continue
        yield begin, end
        begin = end


def _has(document: Any, place: Place) -> bool:
    """Whether a key exists; a single value stands for a list of one."""
    for part in place:
        if isinstance(document, dict):
            if part not in document:
                return False
            document = document[part]
        elif isinstance(document, list) and isinstance(part, int):
            if part >= len(document):
                return False
            document = document[part]
    return True
