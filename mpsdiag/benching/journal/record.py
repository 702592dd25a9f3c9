"""What goes into the process of a cell, what comes out of it, and what the journal keeps of it. Schema 3.

JSON text crosses the border, nothing else. Everything measured stays raw (every loss, every duration); readers make
medians and intervals of it.
"""

import datetime as dt
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mpsdiag.escape import redact, without_home
from mpsdiag.findings import Number
from mpsdiag.scenario.scenario import Measured, Scenario
from mpsdiag.words import CellStatus

SCHEMA = 3

# Without a validator of ours: a long journal is mostly durations.
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
"""What a cell runs that names an environment."""
EMULATED_ABORT = "emulated abort"
"""How the reason of a cell begins whose process would be gone on a Mac."""
FINDINGS = ("nan", "wrong", "ok")
"""What a round finds out about the numbers, worst first; the other statuses say that it did not finish."""
BAD_ENDS = frozenset({"error", "crash", "oom", "timeout"})
"""Statuses of rounds that did not finish by their own fault; `interrupted` is not theirs."""


class Job(BaseModel):
    """One round of one cell. Round 0 gives the verdict, later ones the timings."""

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
    """CPU threads that torch gets; None leaves it to torch. The cell's, except where verdicts share a machine."""
    scratch: str = ""
    """Folder for temporary files, which the parent removes whatever becomes of the process."""
    machine: str | None = None
    """The kind of machine that earlier rounds of the cells it is compared with ran on, if any did."""

    @property
    def name(self) -> str:
        """Key and round, for files and processes."""
        return f"{self.key}-{self.round}"

    def record(self, **ended: Any) -> Record:
        """The journal's line for how it ended, by default just now; `ended` are further fields of a Record."""
        just_now = {"started": utc_now(), "seconds": 0.0}
        return redacted(Record(key=self.key, round=self.round, cell=self.cell, **{**just_now, **ended}))


class CellAnswer(BaseModel):
    """What the function of a cell found out, or what its process met instead of answering."""

    model_config = ConfigDict(extra="forbid")

    status: CellStatus
    reason: str | None = None
    signal: str | None = None
    measured: Measured | None = None
    timing: Timing | None = None


def redacted(record: Record) -> Record:
    """The same without what gives away a person or opens a door: journals are shared, and reports are pasted."""
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
    """This moment as the journal writes it: UTC, ISO 8601, milliseconds."""
    return dt.datetime.now(dt.timezone.utc).isoformat(timespec="milliseconds")
