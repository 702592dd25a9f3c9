"""What `mpsdiag check` found out: one document, rendered three ways (terminal, JSON, Markdown). Schema 1."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from mpsdiag.environment import Environment
from mpsdiag.findings import Advice, Blame, Emulated, Exposure, Part
from mpsdiag.scenario.scenario import FirstNonfinite
from mpsdiag.words import EXIT_FOUND, EXIT_OK, EXIT_UNDECIDED, ProbeStatus, Verdict

SCHEMA = 1
EXIT_CODES: dict[str, int] = {
    "not_affected": EXIT_OK,
    "affected": EXIT_FOUND,
    "undecided": EXIT_UNDECIDED,
}


class Judged(Part):
    """A verdict with its one-sentence reason."""

    verdict: Verdict
    reason: str


class ProbeResult(Part):
    """One probe of the catalogue; `training` and `evaluation` are the two grad modes."""

    id: str
    title: str
    status: ProbeStatus
    detail: str
    training: ProbeStatus
    evaluation: ProbeStatus
    cases: int = 0
    failed: list[str] = Field(default_factory=list)
    upstream: list[str] = Field(default_factory=list)
    remedy: Advice | None = None


class ScenarioResult(Judged):
    """A few training steps and an evaluation through HF Trainer. Losses are means over tokens, in nats."""

    model: str
    dataset: str
    attention: str
    trainer: str
    padding_side: str
    dtype: str
    train_loss: float
    train_losses: list[float]
    eval_loss: float
    eval_losses: list[float]
    stock_eval_loss: float
    """What transformers 5.23 prints by default: batches that are not finite are left out."""
    eval_batches: int
    nonfinite_batches: int
    dead_rows: int
    """(sequence, query) rows that may attend to nothing, as they reach F.sdpa, each counted once a forward."""
    sdpa_calls: int
    real_tokens: int
    pad_tokens: int
    exposure: Exposure | None = None
    """The prediction, to be read beside `dead_rows`, which is what was observed."""
    first_nonfinite: FirstNonfinite | None
    max_abs_logit_diff: float | None
    bound: float | None
    cause: Blame | None = None


class FixResult(Part):
    """One fix, tried on the scenario. `exact`: equal to the reference in dead rows too, within rounding."""

    name: str
    kind: Literal["attention", "trainer"]
    resolves: bool
    exact: bool
    max_abs_logit_diff: float | None
    eval_loss: float
    loss_moved_by: float | None
    why: str


class KnownDefect(Part):
    """A defect this torch release is known for and this level did not probe."""

    id: str
    title: str


class Diagnosis(Part):
    """The whole answer. `verdict` follows from `kernel` and `scenario`: either makes it."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_: int = Field(default=SCHEMA, alias="schema")
    verdict: Verdict
    reason: str
    level: int
    device: str
    emulated: Emulated | None
    environment: Environment
    kernel: Judged
    probes: list[ProbeResult] = Field(default_factory=list)
    scenario: ScenarioResult | None = None
    fixes: list[FixResult] = Field(default_factory=list)
    advice: list[Advice] = Field(default_factory=list)
    differs_from_release: list[str] = Field(default_factory=list)
    """Where a real device does not behave as the table for its torch release says."""
    not_probed: list[KnownDefect] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    """What else has to be known to read this, such as weights that are random."""

    @property
    def exit_code(self) -> int:
        """0 not affected, 1 affected, 3 undecided."""
        return EXIT_CODES[self.verdict]

    def document(self) -> dict[str, Any]:
        """The JSON document, with `schema` first."""
        return self.model_dump(by_alias=True)
