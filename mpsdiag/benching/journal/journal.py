"""Reading a journal: JSON Lines, one header, then one line a finished round of a cell."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mpsdiag.benching.journal.record import SCHEMA, Header, Record, redacted
from mpsdiag.errors import BadInput
from mpsdiag.scenario.scenario import OLD_NAMES, Scenario
from mpsdiag.serialization import read_file
from mpsdiag.words import BUILTIN_MODELS


class NewerSchema(BadInput):
    """A line was written by a newer mpsdiag than this one; reading it could only misread it."""


def migrate(line: dict[str, Any], where: str) -> dict[str, Any]:
    """Bring a journal line to today's schema; a line of today comes back as it is.

    Raises NewerSchema if its schema is not known yet, ValueError if there never was such a schema.
    """
    schema = line.get("schema")
    if isinstance(schema, bool) or not isinstance(schema, int):
        return line
    if schema > SCHEMA:
        raise NewerSchema(
            f"{where} was written by a newer mpsdiag (schema {schema}; this one reads up to {SCHEMA}). "
            "Upgrade mpsdiag to read it."
        )
    while schema < SCHEMA:
        if schema not in STEPS:
            raise ValueError(f"schema {schema} does not exist")
        line = STEPS[schema](dict(line))
        schema += 1
        line["schema"] = schema
    return line


def _from_1(line: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 did not write down how a cell was timed: it is taken as that version did it by default."""
    spec = line.get("cell")
    if isinstance(spec, dict):
        threads = 1 if spec.get("model") in BUILTIN_MODELS else None
        line["cell"] = {**spec, "warmup": 2, "repeats": 5, "threads": threads}
    return line


def _from_2(line: dict[str, Any]) -> dict[str, Any]:
    """Schema 2 had names of its own for what Hugging Face names, too.

    The key is made again, so that `bench` resumes; where the line does not name its versions it stays.
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


# From which schema -> the step to the next. A new schema adds one entry and one sample file under tests/.
STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1, 2: _from_2}


class NotAJournal(BadInput):
    """A file that is not a journal."""

    def __init__(self, name: str, remedy: str) -> None:
        """Say so."""
        super().__init__(f"{name} is not an mpsdiag journal: its first line is not a header. {remedy}")
        self.name = name


@dataclass
class Journal:
    """What a journal says. `records` has the newest record of each (key, round), in the order of the file."""

    header: Header
    records: list[Record]
    warnings: list[str] = field(default_factory=list)
    path: Path | None = None


def read_journal(path: Path | str) -> Journal:
    """Read a journal file, or the `journal.jsonl` of a folder that `bench` wrote.

    A torn last line is dropped and every other bad line is left out, each with a warning that names it.

    Raises BadInput if there is no such file, it cannot be read, it is not a journal, or a newer mpsdiag wrote it.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "journal.jsonl"
    try:
        data = read_file(path)
    except FileNotFoundError as problem:
        raise BadInput(f"There is no journal at {path}. `mpsdiag bench --out FOLDER` writes one.") from problem
    except OSError as problem:
        raise BadInput(f"Cannot read {path}: {problem.strerror}.") from problem
    journal = parse_journal(data, str(path))
    journal.path = path
    return journal


def parse_journal(data: bytes, name: str) -> Journal:
    """Parse the bytes of a journal.

    Raises BadInput if the first line is not a header, or a newer mpsdiag wrote a line.
    """
    *whole, rest = data.split(b"\n")
    if not whole:  # a header whose line feed is missing
        whole, rest = [rest], b""
    lines = [(number, line) for number, line in enumerate(whole, start=1) if line.strip()]
    try:
        number, line = lines[0]
        header = Header.model_validate(migrate(_loads(line), f"{name} line {number}"))
    except (IndexError, ValueError) as problem:
        remedy = "Give a journal.jsonl that `mpsdiag bench` wrote, or its folder."
        raise NotAJournal(name, remedy) from problem
    journal = Journal(header=header, records=[])
    records: dict[tuple[str, int], Record] = {}
    for number, line in lines[1:]:
        _take(line, f"{name} line {number}", records, journal.warnings)
    if rest.strip():
        # Without its line feed the last line was cut by a crash, unless only the line feed is missing.
        where = f"{name} line {len(whole) + 1}"
        if not _take(rest, where, records, []):
            journal.warnings.append(f"{where} is torn (the last write was cut short) and was dropped.")
    journal.records = list(records.values())
    return journal


def _take(line: bytes, where: str, records: dict[tuple[str, int], Record], warnings: list[str]) -> bool:
    """Add the record of a line, or a warning; whether it was a record."""
    try:
        parsed = migrate(_loads(line), where)
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
        record.environment = last.environment  # one object for all: a long journal is mostly environments
    # A later record of the same round replaces the earlier one (a retry), and takes its place in the order.
    records.pop((record.key, record.round), None)
    records[record.key, record.round] = record
    return True


def _loads(line: bytes) -> dict[str, object]:
    try:
        parsed = json.loads(line.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as problem:
        raise ValueError("it is not JSON") from problem
    if not isinstance(parsed, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - callers catch one kind
    return parsed
