"""How older journal lines become lines of today's schema, one step at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpsdiag.benching.journal.record import SCHEMA
from mpsdiag.errors import BadInput
from mpsdiag.scenario.scenario import OLD_NAMES, Scenario
from mpsdiag.words import BUILTIN_MODELS


class NewerSchema(BadInput):
    """A line was written by a newer mpsdiag than this one; reading it could only misread it."""


def migrate(line: dict[str, Any], where: str) -> dict[str, Any]:
    """Bring a journal line to today's schema; a line of today comes back as it is.

    Args:
        line: The line as parsed. A line without a schema is left to the validation that follows.
        where: File and line number, for the sentence.

    Raises:
        NewerSchema: The line's schema is not known yet.
        ValueError: Its schema is not one that ever was.
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
