"""What every command may say: advice, exposure, blame, and under which emulation something was found."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    """A piece of an answer: only the fields that are named."""

    model_config = ConfigDict(extra="forbid")


class Emulated(Part):
    """Under which model of the MPS kernels this was found: nothing of it was measured on MPS."""

    release: str
    macos: int


class Advice(Part):
    """What to do next: a sentence, and the commands or lines of code that do it."""

    text: str
    commands: list[str] = Field(default_factory=list)


class LayerExposure(Part):
    """Dead rows in the layers of one kind: `full`, `sliding` or `chunked`; `width` in tokens."""

    kind: str
    width: int | None
    layers: int
    rows: int


class Exposure(Part):
    """Where dead rows will arise, predicted from config, padding and attention, without running on the device."""

    rows: int
    """(sequence, query) rows that may attend to nothing, each counted once a forward."""
    sequences: int
    """Sequences with such a row; where the kernel gives NaN for one, the whole sequence is lost."""
    of_sequences: int
    reasons: dict[str, int] = Field(default_factory=dict)
    """Rows by where they come from."""
    layers: list[LayerExposure] = Field(default_factory=list)
    reach_sdpa: bool = True
    """The attention hands them to F.scaled_dot_product_attention."""
    causal: bool = True
    """False for an encoder: its queries see every real token, so padding leaves none of them without a key."""
    notes: list[str] = Field(default_factory=list)


class Blame(Part):
    """The cause of a bad scenario, as `mpsdiag trace` names it, and where it was born; `also`: further causes."""

    cause: str
    layer: int | None
    module: str
    operation: str
    summary: str
    also: list[str] = Field(default_factory=list)
    remedy: Advice
