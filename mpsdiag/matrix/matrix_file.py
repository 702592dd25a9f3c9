"""Reading a matrix file (TOML), with complaints that name its line."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mpsdiag.errors import BadInput
from mpsdiag.matrix.complaints import Place, validated
from mpsdiag.matrix.spec import MatrixSpec

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the same parser under its older name
    import tomli as tomllib

_TABLE = re.compile(r"^\s*\[\[?\s*([\w.\"'-]+)\s*\]\]?")


def load_matrix(path: Path | str) -> MatrixSpec:
    """Read a matrix file; its name is that of the file unless the file gives one.

    Raises:
        BadInput: No such file, no TOML, or no matrix; the sentence names file, line and key, and the nearest word.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as problem:
        raise BadInput(f"There is no matrix file {path}. Ready ones are in benchmarks/.") from problem
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8 text"
        raise BadInput(f"Cannot read the matrix file {path}: {reason}.") from problem
    return parse_matrix(text, str(path), name=re.sub(r"[^A-Za-z0-9._-]", "-", path.stem).lstrip(".-_"))


def parse_matrix(text: str, file: str, *, name: str = "") -> MatrixSpec:
    """Make a matrix of the text of a file.

    Args:
        text: TOML.
        file: What to call it in sentences.
        name: Of the matrix, where the text gives none.

    Raises:
        BadInput: As `load_matrix`.
    """
    try:
        document: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise BadInput(f"{file} is not TOML: {problem}.") from problem
    if name:
        document.setdefault("name", name)
    return validated(MatrixSpec, document, lambda place: where(text, file, place))


def where(text: str, file: str, place: Place) -> str:
    """Say where a key stands: `matrix.toml line 7, axes.attention`; without the line where it is not to be seen.

    Args:
        text: The file's text.
        file: Its name.
        place: Keys, and positions in lists.
    """
    names = [part for part in place if not part.isdigit()]
    line = _line(text, place)
    return f"{file} line {line}, {'.'.join(names)}" if line else f"{file}, {'.'.join(names) or 'the matrix'}"


def _line(text: str, place: Place) -> int | None:
    """The line of the innermost key of a place that stands at the beginning of a line."""
    table, position, key = _split(place)
    current, seen = "", -1
    heading: int | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        found = _TABLE.match(line)
        if found:
            current = found.group(1).strip("\"'")
            if not table and current == key:
                return number
            seen += current == table
            if current == table and seen == position:
                heading = number
        elif key and current == table and (not table or seen == position) and _assigns(line, key):
            return number
    return heading


def _split(place: Place) -> tuple[str, int, str]:
    """Table, which one of its name, and key in it: `include.1.attention` -> include, 1, attention."""
    if not place:
        return "", 0, ""
    if place[0] == "axes":
        return "axes", 0, place[1] if len(place) > 1 else ""
    if place[0] in {"include", "exclude"} and len(place) > 1:
        return place[0], int(place[1]) if place[1].isdigit() else 0, place[2] if len(place) > 2 else ""
    return "", 0, place[0]


def _assigns(line: str, key: str) -> bool:
    return re.match(rf"^\s*[\"']?{re.escape(key)}[\"']?\s*=", line) is not None
