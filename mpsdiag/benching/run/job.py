"""What goes into a cell's process and what comes out of it. JSON text crosses the border, nothing else."""

from __future__ import annotations

import datetime as dt
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mpsdiag.benching.journal.record import Record, Timing
from mpsdiag.scenario.scenario import Measured, Number, Scenario
from mpsdiag.words import CellStatus

CELL_FUNCTION = "mpsdiag.benching.run.cell:run_cell"
BAD_ENDS = frozenset({"error", "crash", "oom", "timeout"})
"""Statuses of rounds that did not finish by their own fault; `interrupted` is not theirs."""


class Job(BaseModel):
    """One round of one cell. Round 0 gives the verdict, later ones the timings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    cell: Scenario
    round: int = Field(default=0, ge=0)
    function: str = CELL_FUNCTION
    """`module:function`, looked up in the child; it takes this Job and returns an Answer."""
    time_limit: float = Field(default=300.0, gt=0)
    """Seconds until the process of this round is ended."""
    log: str
    threads: int | None = None
    """CPU threads that torch gets; None leaves it to torch. The cell's, except where verdicts share a machine."""
    machine: str | None = None
    """The kind of machine that earlier rounds of the cells it is compared with ran on, if any did."""

    @property
    def name(self) -> str:
        """Key and round, for files and processes."""
        return f"{self.key}-{self.round}"


class Answer(BaseModel):
    """What the function of a cell found out."""

    model_config = ConfigDict(extra="forbid")

    status: CellStatus
    reason: str | None = None
    measured: Measured | None = None
    timing: Timing | None = None


class Ended(Answer):
    """How a round ended, by its own answer or by what the process met."""

    signal: str | None = None
    log_tail: str = ""
    started: str
    seconds: Number
    environment: dict[str, Any] = Field(default_factory=dict)

    def record(self, job: Job) -> Record:
        """The journal's line for it."""
        return Record(key=job.key, round=job.round, cell=job.cell, **dict(self))


def utc_now() -> str:
    """This moment as the journal writes it: UTC, ISO 8601, milliseconds."""
    return dt.datetime.now(dt.timezone.utc).isoformat(timespec="milliseconds")
