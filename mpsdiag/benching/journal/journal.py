"""Reading a journal: JSON Lines, a header, then one line for each finished round of a cell."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mpsdiag.benching.journal.record import SCHEMA, Header, Record, redacted
from mpsdiag.errors import BadInput, file_errors
from mpsdiag.scenario.scenario import OLD_NAMES, Scenario
from mpsdiag.serialization import read_file
from mpsdiag.words import BUILTIN_MODELS


class NewerSchema(BadInput):
    """A line was written by a newer mpsdiag, and could only be misread."""


def migrate(line: dict[str, Any], where: str, today: int = SCHEMA) -> dict[str, Any]:
    """Bring a journal line to the current schema; a current line is returned unchanged.

    Raises NewerSchema if its schema is newer than this one, ValueError if the schema never existed.
    """
    schema = line.get("schema")
    if isinstance(schema, bool) or not isinstance(schema, int):
        return line
    if schema > today:
        raise NewerSchema(
            f"{where} was written by a newer mpsdiag (schema {schema}; this one reads up to {today}). "
            "Upgrade mpsdiag to read it."
        )
    while schema < today:
        if schema not in STEPS:
            raise ValueError(f"schema {schema} does not exist")
        line = STEPS[schema](dict(line))
        schema += 1
        line["schema"] = schema
    return line


def _from_1(line: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 did not record how a cell was timed; that version's defaults are assumed."""
    spec = line.get("cell")
    if isinstance(spec, dict):
        threads = 1 if spec.get("model") in BUILTIN_MODELS else None
        line["cell"] = {**spec, "warmup": 2, "repeats": 5, "threads": threads}
    return line


def _from_2(line: dict[str, Any]) -> dict[str, Any]:
    """Schema 2 had its own names for things that Hugging Face names too.

    The key is computed again, so that `bench` resumes; if the line names no versions, the key stays.
    """
    spec, environment = line.get("cell"), line.get("environment")
    if not isinstance(spec, dict):
        return line
    line["cell"] = {OLD_NAMES.get(name, name): value for name, value in spec.items()}
    known = environment.get("versions") if isinstance(environment, dict) else None
    if isinstance(known, dict):
        versions = {name: str(known.get(name) or "missing") for name in ("torch", "transformers")}
        line["key"] = Scenario.model_validate(line["cell"]).key(versions)
    return line


# From each schema to the next. A new schema adds one entry here and one sample file under tests/.
STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1, 2: _from_2}


class NotAJournal(BadInput):
    """A file that is not a journal."""

    def __init__(self, name: str, remedy: str) -> None:
        """Say so."""
        super().__init__(f"{name} is not an mpsdiag journal: its first line is not a header. {remedy}")
        self.name = name


@dataclass
class Journal:
    """The content of a journal. `records` has the newest record of each (key, round), in the order of the file."""

    header: Header
    records: list[Record]
    warnings: list[str] = field(default_factory=list)
    path: Path | None = None


def read_journal(path: Path | str) -> Journal:
    """Read a journal file, or the `journal.jsonl` of a folder that `bench` wrote.

    A torn last line is dropped and every other bad line left out, each with a warning that names it.

    Raises BadInput if the file does not exist or cannot be read, is not a journal, or is from a newer mpsdiag.
    """
    path, data = read_bytes(Path(path))
    if data is None:
        raise BadInput(f"There is no journal at {path}. `mpsdiag bench --out FOLDER` writes one.")
    journal = parse_journal(data, str(path))
    journal.path = path
    return journal


def read_bytes(path: Path) -> tuple[Path, bytes | None]:
    """The path of a journal (in a folder, its `journal.jsonl`) and its bytes; None if there is no such file.

    Raises BadInput if it cannot be read.
    """
    path = path / "journal.jsonl" if path.is_dir() else path
    with file_errors(f"Cannot read {path}"):
        try:
            return path, read_file(path)
        except FileNotFoundError:
            return path, None


def lines_of(data: bytes, name: str) -> Iterator[tuple[str, bytes, bool]]:
    """Each line that is not empty: its place, its bytes, and whether its line feed is missing.

    Without its line feed the last line was cut by a crash, unless only the line feed is missing.
    """
    *whole, rest = data.split(b"\n")
    for number, line in enumerate([*whole, rest], start=1):
        if line.strip():
            yield f"{name} line {number}", line, number > len(whole)


def parse_journal(data: bytes, name: str) -> Journal:
    """Parse the bytes of a journal.

    Raises BadInput if the first line is not a header, or a newer mpsdiag wrote a line.
    """
    lines = lines_of(data, name)
    try:
        where, line, _ = next(lines)
        header = Header.model_validate(migrate(loads(line), where))
    except (StopIteration, ValueError) as problem:
        remedy = "Give a journal.jsonl that `mpsdiag bench` wrote, or its folder."
        raise NotAJournal(name, remedy) from problem
    journal = Journal(header=header, records=[])
    records: dict[tuple[str, int], Record] = {}
    for where, line, cut in lines:
        if not _take(line, where, records, [] if cut else journal.warnings) and cut:
            journal.warnings.append(f"{where} is torn (the last write was cut short) and was dropped.")
    journal.records = list(records.values())
    return journal


def _take(line: bytes, where: str, records: dict[tuple[str, int], Record], warnings: list[str]) -> bool:
    """Add the record of a line, or a warning; whether it was a record."""
    try:
        parsed = migrate(loads(line), where)
        if parsed.get("kind") == "header":
            warnings.append(f"{where} is a second header and was left out; the first one counts.")
            return False
        record = redacted(Record.model_validate(parsed))
    except ValidationError as problem:
        first = problem.errors()[0]
        what = ".".join(str(part) for part in first["loc"])
        warnings.append(f"{where} is not a record and was left out ({what or 'line'}: {first['msg']}).")
        return False
    except ValueError as problem:
        warnings.append(f"{where} is not a record and was left out ({problem}).")
        return False
    last = next(reversed(records.values()), None)
    if last is not None and last.environment == record.environment:
        record.environment = last.environment  # one shared object: a long journal is mostly environments
    # A later record of the same round (a retry) replaces the earlier one, in the earlier one's position.
    records.pop((record.key, record.round), None)
    records[record.key, record.round] = record
    return True


def loads(line: bytes) -> dict[str, Any]:
    """A line as JSON. Raises ValueError if it is not an object."""
    try:
        parsed = json.loads(line.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as problem:
        raise ValueError("it is not JSON") from problem
    if not isinstance(parsed, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - callers catch one kind
    return parsed
