"""The findings of `mpsdiag check`, schema 1, and the rules that turn evidence into a verdict. No torch."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from mpsdiag.environment import Environment
from mpsdiag.findings import Advice, Answer, Blame, Emulated, Exposure, Invariance, Part
from mpsdiag.scenario.scenario import FirstNonfinite, Measured, finite
from mpsdiag.words import EXIT_FOUND, EXIT_OK, EXIT_UNDECIDED, ProbeStatus, Verdict

SCHEMA = 1
EXIT_CODES: dict[str, int] = {"not_affected": EXIT_OK, "affected": EXIT_FOUND, "undecided": EXIT_UNDECIDED}


class Judged(Part):
    """A verdict with its one-sentence reason."""

    verdict: Verdict
    reason: str


class ProbeResult(Part):
    """What a `Finding` of the probes says in the document; `training` and `evaluation` are the two grad modes."""

    id: str
    title: str
    status: ProbeStatus
    detail: str
    training: ProbeStatus
    evaluation: ProbeStatus
    cases: int = 0
    failed: list[Annotated[str, BeforeValidator(str)]] = Field(default_factory=list)
    upstream: list[str] = Field(default_factory=list)
    remedy: Advice | None = None


class ScenarioResult(Judged):
    """A few training steps and an evaluation with HF Trainer. Losses are means over tokens, in nats."""

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
    """The value that the installed transformers prints by default; 5.23 and later leave out non-finite batches."""
    eval_batches: int
    nonfinite_batches: int
    dead_rows: int
    """(sequence, query) rows that may attend to nothing and reach F.sdpa, each counted once for each forward."""
    sdpa_calls: int
    real_tokens: int
    pad_tokens: int
    exposure: Exposure | None = None
    """The prediction; `dead_rows` is what was observed."""
    first_nonfinite: FirstNonfinite | None
    max_abs_logit_diff: float | None
    bound: float | None
    cause: Blame | None = None


class FixResult(Part):
    """One fix, tried on the scenario. `exact`: equal to the reference within rounding, even in fully masked rows."""

    name: str
    kind: Literal["attention", "trainer"]
    resolves: bool
    exact: bool
    max_abs_logit_diff: float | None
    eval_loss: float
    loss_moved_by: float | None
    why: str


class KnownDefect(Part):
    """A known defect of this torch release that this level did not probe."""

    id: str
    title: str


class Diagnosis(Answer, Part):
    """The whole answer. `verdict` follows from `kernel`, `scenario` and `invariance`: each can decide it."""

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
    invariance: Invariance | None = None
    fixes: list[FixResult] = Field(default_factory=list)
    advice: list[Advice] = Field(default_factory=list)
    differs_from_release: list[str] = Field(default_factory=list)
    """Where a real device differs from the table for its torch release."""
    not_probed: list[KnownDefect] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    """What else a reader must know, such as that weights are random."""

    @property
    def exit_code(self) -> int:
        """0 not affected, 1 affected, 3 undecided."""
        return EXIT_CODES[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document, with `schema` first."""
        return self.model_dump(by_alias=True)


def kernel_verdict(probes: Sequence[ProbeResult]) -> Judged:
    """Judge attention by its probes: a failure means affected, a broken probe leaves it undecided."""
    failed = [probe for probe in probes if probe.status == "fail"]
    if failed:
        listed = "; ".join(f"{probe.id} {probe.title} ({_where(probe)})" for probe in failed)
        return Judged(verdict="affected", reason=f"failed: {listed}")
    broken = [probe.id for probe in probes if probe.status == "error"]
    if broken:
        return Judged(verdict="undecided", reason=f"the probe itself broke: {', '.join(broken)}")
    passed = [probe.id for probe in probes if probe.status == "pass"]
    if passed:
        return Judged(verdict="not_affected", reason=f"{len(passed)} of {len(probes)} probes ran, all passed")
    return Judged(verdict="undecided", reason="no probe could run")


def scenario_verdict(outcome: Measured) -> Judged:
    """Judge the scenario. If the loss is non-finite on the CPU too, the device is not the cause."""
    if outcome.status == "ok":
        return Judged(verdict="not_affected", reason=outcome.reason)
    if outcome.status == "nan" and not _device_is_to_blame(outcome):
        return Judged(
            verdict="undecided",
            reason=f"{outcome.reason}, but the CPU gives the same with the same weights and data: "
            "the attention of this device is not the cause (labels all -100, bad weights, divergence?)",
        )
    return Judged(verdict="affected", reason=outcome.reason)


def invariance_verdict(found: Invariance) -> Judged:
    """Judge padding invariance: numbers that padding changes are wrong, on any device."""
    verdict: dict[str, Verdict] = {"varies": "affected", "invariant": "not_affected"}
    return Judged(verdict=verdict.get(found.verdict, "undecided"), reason=found.reason)


def overall(kernel: Judged, scenario: Judged | None, invariance: Judged | None = None) -> Judged:
    """Combine the parts: affected takes precedence, then undecided, then not affected."""
    parts = {"kernel": kernel, "scenario": scenario, "padding invariance": invariance}
    known = [(name, part) for name, part in parts.items() if part is not None]
    for verdict in ("affected", "undecided"):
        saying = [f"{name}: {part.reason}" for name, part in known if part.verdict == verdict]
        if saying:
            return Judged(verdict=verdict, reason="; ".join(saying))
    return Judged(verdict="not_affected", reason="; ".join(f"{name}: {part.reason}" for name, part in known))


def _device_is_to_blame(outcome: Measured) -> bool:
    """In training the first step decides (later weights are already spoilt); an evaluation uses the same weights."""
    if outcome.train_losses and not math.isfinite(outcome.train_losses[0]):
        return finite(outcome.reference_first_train_loss)
    return finite(outcome.reference_eval_loss)


def _where(probe: ProbeResult) -> str:
    hit = [name for name in ("training", "evaluation") if getattr(probe, name) == "fail"]
    return " and ".join(hit) or "level 3"
