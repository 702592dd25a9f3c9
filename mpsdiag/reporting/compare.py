"""Two documents of `mpsdiag check --json` side by side, from two machines or two releases, and their differences."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mpsdiag.checking.diagnosis import SCHEMA, Diagnosis
from mpsdiag.environment import facts
from mpsdiag.errors import BadInput, file_errors
from mpsdiag.reporting.check import number, resolving, subject
from mpsdiag.reporting.layout import blocks
from mpsdiag.reporting.story.changes import differing
from mpsdiag.reporting.story.figures import NOTHING
from mpsdiag.serialization import read_file
from mpsdiag.words import count

LARGEST = 2**24
"""Largest size of a document in bytes; a real one has about ten thousand."""


@dataclass(frozen=True)
class Difference:
    """One difference between the two documents; `finding`: it counts for the exit code."""

    what: str
    first: str
    second: str
    finding: bool


def is_check(path: Path) -> bool:
    """Whether a file looks like a document of `mpsdiag check --json`."""
    try:
        begin = read_file(path, 200)
    except OSError:
        return False
    return begin.lstrip().startswith(b"{") and b'"schema"' in begin and b'"verdict"' in begin


def read_diagnosis(path: Path) -> Diagnosis:
    """Read a document of `mpsdiag check --json`.

    Raises BadInput if it cannot be read, is another kind of file, or was written by a newer mpsdiag.
    """
    try:
        with file_errors(f"Cannot read {path}"):
            found: Any = json.loads(read_file(path, LARGEST))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not {"schema", "verdict", "kernel"} <= found.keys():
        raise BadInput(f"{path} was not written by `mpsdiag check --json`.")
    if isinstance(found["schema"], int) and found["schema"] > SCHEMA:
        raise BadInput(f"{path} was written by a newer mpsdiag (schema {found['schema']}). Upgrade this one.")
    try:
        return Diagnosis.model_validate(found)
    except ValidationError as problem:
        where = ".".join(str(part) for part in problem.errors()[0]["loc"])
        raise BadInput(f"{path} is a damaged document of `mpsdiag check --json`, at '{where}'.") from problem


def differences(first: Diagnosis, second: Diagnosis) -> list[Difference]:
    """List the differences, findings first. What only one of them examined is not a finding."""
    ours, theirs = _facts(first), _facts(second)
    nothing = (NOTHING, False)
    made = []
    for what in dict.fromkeys([*ours, *theirs]):
        (one, finding), (other, too) = ours.get(what, nothing), theirs.get(what, nothing)
        if one != other:
            made.append(Difference(what, one, other, finding and too))
    return sorted(made, key=lambda one: not one.finding)


def _facts(found: Diagnosis) -> dict[str, tuple[str, bool]]:
    """The content of a check by name, and whether it is a finding: everything except names and numbers is."""
    made: dict[str, tuple[str, bool]] = {"verdict": (found.verdict, True), "kernel": (found.kernel.verdict, True)}
    for probe in found.probes:
        made[f"{probe.id}, training"] = (probe.training, True)
        made[f"{probe.id}, evaluation"] = (probe.evaluation, True)
    scenario = found.scenario
    if scenario is not None:
        made["scenario"] = (scenario.verdict, True)
        made["cause"] = (scenario.cause.cause if scenario.cause else "none", True)
        made["model"], made["dataset"] = (scenario.model, False), (scenario.dataset, False)
        for name in ("train_loss", "eval_loss"):
            made[name] = (number(getattr(scenario, name)), False)
        made["fully masked rows"] = (str(scenario.dead_rows), False)
    made.update({f"{fix.name} resolves it": (resolving(fix), True) for fix in found.fixes})
    return made


def document(first: Diagnosis, second: Diagnosis, names: tuple[str, str]) -> blocks.Document:
    """Lay out the comparison; `names` are those of the two files."""
    found = differences(first, second)
    counted = sum(one.finding for one in found)
    sides = blocks.pairs("document", [(f"A: {names[0]}", subject(first)), (f"B: {names[1]}", subject(second))])
    ours, theirs = dict(facts(first.environment)), dict(facts(second.environment))
    parts: list[blocks.Part] = [("documents", "", [sides])]
    for key, title, rows in (
        ("findings", "Differences", [_row(one) for one in found if one.finding]),
        ("others", "Other differences", [_row(one) for one in found if not one.finding]),
        ("machines", "Environments", differing(ours, theirs)),
    ):
        parts.append((key, title, [blocks.table("", ("what", "A", "B"), rows, iter)] if rows else []))
    headline = f"{count(counted, 'finding')} differ{'s' if counted == 1 else ''}" if counted else "same findings"
    return blocks.document("mpsdiag compare", headline, "undecided" if counted else "not_affected", parts)


def _row(one: Difference) -> tuple[str, str, str]:
    return one.what, one.first, one.second
