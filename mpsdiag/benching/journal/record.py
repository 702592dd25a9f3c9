"""The input and output of a cell's process, and what the journal keeps of them. Schema 3.

Only JSON text crosses the process boundary. Everything measured stays raw (every loss, every duration); readers
compute medians and intervals.
"""

import datetime as dt
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mpsdiag.escape import redact, without_home
from mpsdiag.findings import Number
from mpsdiag.scenario.scenario import Measured, Scenario
from mpsdiag.words import CellStatus

SCHEMA = 3

# No validator of our own: a long journal is mostly durations.
Seconds = Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False, strict=True)]


class Timing(BaseModel):
    """Durations in seconds, with the device they were measured on; never those of an emulated leg."""

    model_config = ConfigDict(extra="forbid")

    device: str
    warmup: int
    threads: int | None = None
    """CPU threads that torch used."""
    train_step: list[Seconds] = Field(default_factory=list)
    eval_step: list[Seconds] = Field(default_factory=list)
    train_tokens: int = 0
    """Real tokens of the batch that every timed training step ran; the same batch each time."""
    train_pads: int = 0
    eval_tokens: int = 0
    """Real tokens of the batch that every timed evaluation step ran."""
    eval_pads: int = 0


class Record(BaseModel):
    """One line of a journal: one finished round of one cell."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_: int = Field(default=SCHEMA, alias="schema", strict=True)
    kind: Literal["cell"] = "cell"
    key: str
    round: int = 0
    cell: Scenario
    status: CellStatus
    reason: str | None = None
    """One sentence: why skipped, what error, which limit."""
    signal: str | None = None
    log_tail: str = ""
    started: str
    """UTC, ISO 8601."""
    seconds: Annotated[Number, Field(ge=0, allow_inf_nan=False)]
    measured: Measured | None = None
    timing: Timing | None = None
    environment: dict[str, Any] = Field(default_factory=dict)


class Header(BaseModel):
    """The first line of a journal."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_: int = Field(default=SCHEMA, alias="schema", strict=True)
    kind: Literal["header"] = "header"
    mpsdiag: str
    command: str
    created: str
    baseline: str = "sdpa"
    environment: dict[str, Any] = Field(default_factory=dict)


CELL_FUNCTION = "mpsdiag.benching.run.cell:run_cell"
RELEASE_FUNCTION = "mpsdiag.benching.run.in_child:run_in_release"
"""The function of a cell that names an environment."""
EMULATED_ABORT = "emulated abort"
"""Start of the reason of a cell whose process would have died on a Mac."""
FINDINGS = ("nan", "wrong", "ok")
"""Statuses about the numbers, worst first; the other statuses mean that a round did not finish."""
BAD_ENDS = frozenset({"error", "crash", "oom", "timeout"})
"""Statuses of rounds that did not finish through their own fault; `interrupted` is not their fault."""


class Job(BaseModel):
    """One round of one cell. Round 0 gives the verdict, later rounds give the timings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    cell: Scenario
    round: int = Field(default=0, ge=0)
    function: str = CELL_FUNCTION
    """`module:function`, looked up in the child; it takes this Job and returns a CellAnswer."""
    time_limit: float = Field(default=300.0, gt=0)
    """Seconds until the process of this round is ended."""
    log: str
    threads: int | None = None
    """CPU threads that torch gets; None leaves it to torch. The cell's number, unless verdicts share a machine."""
    scratch: str = ""
    """Folder for temporary files, which the parent removes whatever happens to the process."""
    machine: str | None = None
    """The kind of machine on which earlier rounds of this comparison ran, if any did."""

    @property
    def name(self) -> str:
        """Key and round, for files and processes."""
        return f"{self.key}-{self.round}"

    def record(self, **ended: Any) -> Record:
        """The journal's line for how it ended, by default just now; `ended` are further fields of a Record."""
        just_now = {"started": utc_now(), "seconds": 0.0}
        return redacted(Record(key=self.key, round=self.round, cell=self.cell, **{**just_now, **ended}))


class CellAnswer(BaseModel):
    """The result of a cell's function, or what happened to its process instead."""

    model_config = ConfigDict(extra="forbid")

    status: CellStatus
    reason: str | None = None
    signal: str | None = None
    measured: Measured | None = None
    timing: Timing | None = None


def redacted(record: Record) -> Record:
    """The same without personal words and secrets: journals are shared, and reports are pasted."""
    cell = record.cell
    names = {name: getattr(cell, name) for name in ("model", "dataset", "eval_dataset")}
    clean = {name: without_home(text) for name, text in names.items() if text}
    if any(clean[name] != names[name] for name in clean):
        record.cell = cell.model_copy(update=clean)
    record.reason = record.reason and redact(record.reason)
    record.log_tail = record.log_tail and redact(record.log_tail)
    if record.measured is not None and record.measured.missing_weights:
        record.measured.missing_weights = redact(record.measured.missing_weights)
    return record


def utc_now() -> str:
    """The current time as the journal writes it: UTC, ISO 8601, milliseconds."""
    return dt.datetime.now(dt.timezone.utc).isoformat(timespec="milliseconds")
