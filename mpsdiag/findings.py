"""Findings shared by all commands: advice, exposure, blame, and the emulation under which something was found."""

import math
from importlib import import_module
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mpsdiag.serialization import number

# JSON has no NaN: non-finite numbers are written as strings and read back as numbers.
Number = Annotated[float, BeforeValidator(number)]
InvarianceCause = Literal["positions", "attention", "mask_leak", "model", "device"]


class Answer:
    """What every answer can do in a console, a notebook or a script: show itself, as text, Markdown or HTML."""

    def __str__(self) -> str:
        return self._shown_as("terminal")

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {str(self).partition(chr(10))[0]}>"

    def to_markdown(self) -> str:
        """The block to paste into an issue or a job summary; shorter than GitHub's limit of 65,536 characters."""
        return self._shown_as("markdown")

    def to_html(self) -> str:
        """A self-contained page, including pictures."""
        return self._shown_as("html")

    def to_dict(self) -> dict[str, Any]:
        """The JSON document that `--json` prints, as plain data."""
        raise NotImplementedError

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def _repr_html_(self) -> str:
        return self._shown_as("fragment")

    def _shown_as(self, form: str) -> str:
        # By name: rendering is a room further down the table, and is only loaded when an answer is shown.
        return str(import_module("mpsdiag.reporting.api").render(self, form))


class Part(BaseModel):
    """A part of an answer; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", from_attributes=True)


class Emulated(Part):
    """The model of the MPS kernels under which this was found; nothing of it was measured on MPS."""

    release: str
    macos: int


class Advice(Part):
    """What to do next: a sentence, and the commands or lines of code for it."""

    text: str
    commands: list[str] = Field(default_factory=list)


class LayerExposure(Part):
    """Fully masked rows in the layers of one kind: `full`, `sliding` or `chunked`; `width` in tokens."""

    kind: str
    width: int | None
    layers: int
    rows: int


class Exposure(Part):
    """Where fully masked rows will occur, predicted from config, padding and attention without running the device."""

    rows: int
    """(sequence, query) rows that may attend to nothing, each counted once for each forward."""
    sequences: int
    """Sequences with such a row; if the kernel gives NaN for one, the whole sequence is lost."""
    of_sequences: int
    reasons: dict[str, int] = Field(default_factory=dict)
    """Rows by origin."""
    layers: list[LayerExposure] = Field(default_factory=list)
    reach_sdpa: bool = True
    """Whether the attention passes them to F.scaled_dot_product_attention."""
    causal: bool = True
    """False for an encoder: its queries see every real token, so padding leaves no query without a key."""
    notes: list[str] = Field(default_factory=list)


class Blame(Part):
    """The cause of a bad scenario, as the `Origin` of `mpsdiag trace` names it; `also`: further causes."""

    cause: str
    layer: int | None
    module: str
    operation: str
    summary: str
    also: list[Annotated[str, BeforeValidator(lambda one: getattr(one, "cause", one))]] = Field(default_factory=list)
    remedy: Advice


class ArrangementResult(Part):
    """One arrangement of the sequences against each alone: the largest difference, and the allowed one."""

    name: str
    max_abs_diff: Number
    allowed: Number
    holds: bool
    counts: bool = True
    """Whether it counts for the verdict. The other padding side, and other tokens under the mask, do not count."""

    @property
    def finite(self) -> bool:
        """Whether everything compared is finite."""
        return math.isfinite(self.max_abs_diff)


class FixTried(Part):
    """A fix, tried on the failed arrangements."""

    name: str
    restores: bool


class FirstLabel(Part):
    """Mean loss over labels, in nats: of all, of those not predicted at padding, and of each sequence alone."""

    eval_loss: Number
    eval_loss_without: Number
    eval_loss_alone: Number

    @property
    def sentence(self) -> str:
        """How much of the loss comes from labels predicted at padding, for people."""
        alone = f"{self.eval_loss_alone:.6g} with each sequence alone"
        if not math.isfinite(self.eval_loss_without):
            return f"over all labels the mean loss is {self.eval_loss:.6g}, and {alone}"
        return (
            f"labels predicted from a padded position move the mean loss over all labels by "
            f"{self.eval_loss - self.eval_loss_without:+.3g}: it is {self.eval_loss:.6g} with them, "
            f"{self.eval_loss_without:.6g} without, {alone}"
        )


class Invariance(Part):
    """Whether padding changes the numbers at real positions; `fixes`: those tried, alone or together."""

    verdict: Literal["invariant", "varies", "undecided"]
    reason: str
    padding_side: str
    cause: InvarianceCause | None = None
    every_device: bool | None = None
    """Whether the CPU shows it too; None if nothing varies."""
    arrangements: list[ArrangementResult] = Field(default_factory=list)
    fixes: list[FixTried] = Field(default_factory=list)
    first_label: FirstLabel | None = None
    by_position: dict[str, list[Number]] = Field(default_factory=dict)
    """By arrangement, the largest error at each position of a sequence, counted from its first token; three digits."""
