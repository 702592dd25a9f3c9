"""What a journal holds: the spec of a cell, and the record of a finished round of it. Schema 2.

Everything measured stays raw here (every loss, every duration); readers make medians and intervals of it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mpsdiag.serialization import number
from mpsdiag.words import AttentionMode, CellStatus, DtypeName, PaddingSide, TrainerVariant

SCHEMA = 2

# JSON has no NaN: non-finite numbers are written as strings and read back as numbers.
Number = Annotated[float, BeforeValidator(number)]
# Without a validator of ours: a long journal is mostly durations.
Seconds = Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False, strict=True)]


class Cell(BaseModel):
    """One point of the matrix, fully resolved: with a journal header it is enough to run it again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "tiny-gpt2"
    attention: AttentionMode = "sdpa"
    trainer: TrainerVariant = "standard"
    padding: PaddingSide = "left"
    dtype: DtypeName = "float32"
    device: str = "cpu"
    emulate: str | None = None
    emulate_macos: int | None = None
    dataset: str = "synthetic"
    eval_dataset: str | None = None
    sequence_length: int = Field(default=512, ge=2)
    batch_size: int = Field(default=4, ge=1)
    pad_to_multiple_of: int | None = Field(default=None, ge=1)
    train_steps: int = Field(default=3, ge=0)
    eval_batches: int = Field(default=4, ge=1)
    seed: int = Field(default=0, ge=0)
    warmup: int = Field(default=2, ge=0)
    """Untimed steps at the start of a timing round."""
    repeats: int = Field(default=5, ge=1)
    """Timed steps of each kind in a timing round."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads that torch gets; its own choice if None."""
    files: str | None = None
    """Fingerprint of the local files that model and data are read from; None if there are none."""

    @property
    def title(self) -> str:
        """Its name by the axes that people compare."""
        return f"{self.attention} + {self.trainer}, {self.padding}, {self.model}, {self.dtype}"

    def key(self, versions: dict[str, str]) -> str:
        """Sixteen hex digits that name this cell with these library versions.

        Args:
            versions: Versions of torch and transformers, by name.
        """
        text = json.dumps({"cell": self.model_dump(), "versions": versions}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


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


class FirstNonfinite(BaseModel):
    """Where the first non-finite value of the evaluation was seen."""

    model_config = ConfigDict(extra="forbid")

    batch: int
    layer: int | None
    module: str
    operation: str
    rows: int


class Measured(BaseModel):
    """What a cell found out. Losses are means over tokens, in nats; memory is in bytes."""

    model_config = ConfigDict(extra="forbid")

    train_losses: list[Number] = Field(default_factory=list)
    grad_norms: list[Number] = Field(default_factory=list)
    eval_losses: list[Number] = Field(default_factory=list)
    eval_loss: Number | None = None
    stock_eval_loss: Number | None = None
    """What this transformers version would have printed with its default `logging_nan_inf_filter`."""
    nonfinite_batches: int = 0
    dead_rows: int = 0
    first_nonfinite: FirstNonfinite | None = None
    nonfinite_rows: list[list[int]] = Field(default_factory=list)
    """Per layer, how many sequences are non-finite at each position (layer x position), first bad batch."""
    max_abs_logit_diff: Number | None = None
    """Against the float64 CPU reference, on real (not padded) positions."""
    bound: Number | None = None
    """Twice the error that eager attention in the same dtype makes against that reference."""
    loss_moved_by: Number | None = None
    """eval_loss minus that of stock SDPA on the CPU in the same dtype, with the same weights."""
    exact: bool | None = None
    """Logits agree with the float64 reference at every position, dead rows (zeros) too, within `bound`."""
    real_tokens: int = 0
    pad_tokens: int = 0
    peak_process_memory: int | None = None
    peak_device_memory: int | None = None


class Record(BaseModel):
    """One line of a journal: one finished round of one cell."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_: int = Field(default=SCHEMA, alias="schema")
    kind: Literal["cell"] = "cell"
    key: str
    round: int = 0
    cell: Cell
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
