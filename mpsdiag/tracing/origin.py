"""`Origin`: where the first non-finite value of a run comes from, its cause, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from mpsdiag.findings import Advice, Answer
from mpsdiag.serialization import read_toml

Cause = Literal[
    "dead_rows",
    "overflow",
    "no_labels",
    "bad_weights",
    "bad_inputs",
    "bad_mask",
    "wrong_device",
    "divergence",
    "hidden_by_filter",
    "division_by_zero",
    "derivative",
    "unknown",
]
CAUSES: Final[tuple[Cause, ...]] = get_args(Cause)

REMEDIES: Final[Mapping[str, Advice]] = TypeAdapter(dict[str, Advice]).validate_python(
    read_toml(Path(__file__).with_name("remedies.toml"))
)
"""What to do, by the names that the rules use."""

Phase = Literal["data", "forward", "backward", "optimizer", "evaluation"]


class Origin(Answer, BaseModel):
    """The first non-finite (or wrong) value of a run: its place, its cause, the evidence, the remedy.

    Attributes:
        cause: The kind; `unknown` when no rule fits the evidence.
        layer: Decoder layer, counted from 0; None outside the layers.
        module: Dotted path of the module that ran the operation; empty for the model itself.
        operation: Public name of the torch operation, such as `scaled_dot_product_attention`.
        phase: The part of a step in which it happened.
        summary: One sentence.
        evidence: Shapes, ranges, rows and counts, all of which can be written as JSON.
        remedy: What to do: a sentence, and commands or lines of code.
        also: Further origins with other causes, in the order they happened.
    """

    model_config = ConfigDict(extra="forbid")

    cause: Cause
    layer: int | None = None
    module: str = ""
    operation: str
    phase: Phase = "forward"
    summary: str
    evidence: dict[str, Any] = Field(default_factory=dict)
    remedy: Advice
    also: list[Origin] = Field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The `origin` of the JSON document, as plain data."""
        return self.model_dump()

    @property
    def place(self) -> str:
        """Layer, module and operation in one phrase."""
        layer = "" if self.layer is None else f"layer {self.layer}, "
        return f"{layer}{self.module or 'the model'}, {self.operation}"
