"""What was watched in a process and what was found: the document of `mpsdiag run --trace`. Schema 1."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from mpsdiag.environment import Environment
from mpsdiag.findings import Answer, Emulated, Exposure, Invariance, Part
from mpsdiag.tracing.origin import Origin
from mpsdiag.words import EXIT_FOUND, EXIT_OK, EXIT_UNDECIDED

SCHEMA = 1


class ScriptFinding(Origin):
    """An Origin with its place in the user's code.

    Attributes:
        file: File of the outermost line of the user's code that led to it; empty if only library code did.
        line: Number of that line. `evidence["user_code"]` lists all lines of the user's code on the way to the model.
        step: Number of optimizer steps before it was first seen.
        count: How often it was seen.
    """

    file: str = ""
    line: int = 0
    step: int = 0
    count: int = 1

    @property
    def key(self) -> tuple[Any, ...]:
        """Findings with the same cause and place count as one."""
        return self.cause, self.phase, self.module, self.operation, *self.user_code

    @property
    def user_code(self) -> list[str]:
        """The lines of the user's code on the way to the model, the outermost first, as `file:line`."""
        return list(self.evidence.get("user_code", []))

    @property
    def place(self) -> str:
        """The lines of the user's code, then layer, module and operation."""
        return ", ".join([*self.user_code, super().place])


class Watched(Part):
    """Counts of what was seen.

    Attributes:
        forwards: Outermost calls of modules, including losses that are modules; `models`: the same by class.
        masked_rows: Fully masked rows in attention: (sequence, query) pairs, each mask counted once in each forward.
        masked_rows_nan: Whether this device made them NaN; None if there were none.
        unlabelled: Forwards or losses whose labels were all -100.
        hidden_losses: Non-finite losses that transformers' filter leaves out of its log.
        skipped_steps: Steps that GradScaler skipped to lower its scale, which is not a fault.
        processes: How many processes ran a model.
        not_repeated: Non-finite forwards that could not be run again.
        unwatched: What could not be followed, such as inputs that cannot be copied: how often, by reason.
    """

    forwards: int = 0
    backwards: int = 0
    steps: int = 0
    models: dict[str, int] = Field(default_factory=dict)
    masked_rows: int = 0
    masked_rows_nan: bool | None = None
    unlabelled: int = 0
    hidden_losses: int = 0
    skipped_steps: int = 0
    processes: int = 0
    not_repeated: int = 0
    unwatched: dict[str, int] = Field(default_factory=dict)

    def plus(self, other: Watched) -> Watched:
        """The counts of two processes."""
        added: dict[str, Any] = {name: getattr(self, name) + getattr(other, name) for name in _COUNTS}
        for name in ("models", "unwatched"):
            added[name] = dict(Counter(getattr(self, name)) + Counter(getattr(other, name)))
        answers = [one for one in (self.masked_rows_nan, other.masked_rows_nan) if one is not None]
        return Watched(**added, masked_rows_nan=any(answers) if answers else None)


_COUNTS: Final = [name for name, field in Watched.model_fields.items() if field.annotation is int]


class ScriptCheck(Part):
    """The findings of `mpsdiag run --check` about a script's model and first batches.

    Attributes:
        model: Its class.
        batches: How many of the script's batches were checked; `evaluation`: those of its first evaluation.
        exposure: The rows predicted from config and padding; None for a model without a config.
        finite: Whether all outputs are finite.
        invariance: Padding invariance of the most padded of these batches; None if it cannot be tested.
        fixes: By name, whether with this fix the outputs are finite and independent of padding.
        notes: What could not be checked, and why.
    """

    model: str
    device: str
    batches: int = 0
    evaluation: bool = True
    exposure: Exposure | None = None
    finite: bool = True
    invariance: Invariance | None = None
    fixes: dict[str, bool] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)

    @property
    def affected(self) -> bool:
        """Whether something is wrong with the outputs."""
        return not self.finite or (self.invariance is not None and self.invariance.verdict == "varies")

    @property
    def resolved_by(self) -> list[str]:
        """The fixes that resolve it."""
        return [name for name, right in self.fixes.items() if right]


class ScriptReport(Answer, BaseModel):
    """The result of watching a script or a block of code.

    Attributes:
        script: The command that was run.
        stopped: Whether it was stopped at the first finding.
        script_exit: Its own exit code, negative for a signal; None if it was stopped, or for a block of code.
        recorded: The folder with the bad batch.
        check: The findings of `--check`.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: int = Field(default=SCHEMA, alias="schema")
    script: list[str] = Field(default_factory=list)
    watched: Watched = Field(default_factory=Watched)
    findings: list[ScriptFinding] = Field(default_factory=list)
    stopped: bool = False
    script_exit: int | None = None
    recorded: str | None = None
    check: ScriptCheck | None = None
    emulated: Emulated | None = None
    environment: Environment | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document, as plain data."""
        return self.model_dump(by_alias=True)

    def plus(self, other: ScriptReport) -> ScriptReport:
        """This report combined with that of another process."""
        return self.model_copy(
            update={
                "watched": self.watched.plus(other.watched),
                "findings": distinct([*self.findings, *other.findings]),
                "stopped": self.stopped or other.stopped,
                "recorded": self.recorded or other.recorded,
                "check": self.check or other.check,
                "emulated": self.emulated or other.emulated,
            }
        )


def distinct(findings: Iterable[ScriptFinding]) -> list[ScriptFinding]:
    """Each finding once, with how often it was seen, in order of appearance."""
    kept: dict[tuple[Any, ...], ScriptFinding] = {}
    for finding in findings:
        before = kept[finding.key].count if finding.key in kept else 0
        kept[finding.key] = kept.get(finding.key, finding).model_copy(update={"count": before + finding.count})
    return list(kept.values())


def gathered(folder: Path, report: ScriptReport) -> ScriptReport:
    """The report of all processes that left one in a folder."""
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        report = report.plus(ScriptReport.model_validate(json.loads(path.read_text(encoding="utf-8"))))
    return report


def check_code(report: ScriptReport) -> int:
    """What `mpsdiag run --check` ends with."""
    if report.check is None:
        return EXIT_UNDECIDED
    if report.check.affected or report.findings:
        return EXIT_FOUND
    return EXIT_UNDECIDED if report.check.invariance is None else EXIT_OK
