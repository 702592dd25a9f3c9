"""What a journal holds: the record of a finished round of a cell. Schema 3.

Everything measured stays raw here (every loss, every duration); readers make medians and intervals of it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mpsdiag.scenario.scenario import Measured, Number, Scenario
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

    schema_: int = Field(default=SCHEMA, alias="schema")
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

    schema_: int = Field(default=SCHEMA, alias="schema")
    kind: Literal["header"] = "header"
    mpsdiag: str
    command: str
    created: str
    baseline: str = "sdpa"
    environment: dict[str, Any] = Field(default_factory=dict)
