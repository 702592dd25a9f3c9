"""What is run and its results: one `Scenario` and one `Measured` for every command and for the journal.

The fields of a scenario are named as in Hugging Face's TrainingArguments, tokenizers and models. Everything measured
stays raw (every loss); readers compute means and intervals.
"""

import hashlib
import json
import math
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mpsdiag.emulation.selection import Emulation
from mpsdiag.errors import nearest
from mpsdiag.findings import Blame, Exposure, Invariance, Number
from mpsdiag.words import ATTENTION_MODES, DEFAULT_MODEL, DtypeName, PaddingSide, TaskChoice, TrainerVariant, is_kernel

DEFAULT_MACOS: Final = 15
LEARNING_RATE: Final = 1e-3
"""Learning rate of the training steps; large for a model of this size, so that a few steps move every weight."""
OLD_NAMES: Final = {
    "attention": "attn_implementation",
    "padding": "padding_side",
    "sequence_length": "max_length",
    "train_steps": "max_steps",
    "eval_batches": "eval_max_batches",
}
"""Old names of fields, and Hugging Face's names that replaced them; files, options and gates may still use them."""


def _attention(name: str) -> str:
    if name in ATTENTION_MODES or is_kernel(name):
        return name
    raise ValueError(f"unknown attn_implementation '{name}'. {nearest(name, ATTENTION_MODES)}")


Attention = Annotated[str, AfterValidator(_attention)]
"""One of `ATTENTION_MODES`, or a kernel of the hub."""


class Scenario(BaseModel):
    """A model, its data, a Trainer and a device, fully resolved; `bench` calls it a cell of its matrix."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = DEFAULT_MODEL
    task: TaskChoice = "auto"
    """The task of the model; `auto` reads it from the config."""
    attn_implementation: Attention = "sdpa"
    trainer: TrainerVariant = "standard"
    padding_side: PaddingSide = "left"
    dtype: DtypeName = "float32"
    device: str = "cpu"
    emulate: str | None = None
    """Torch release whose MPS kernels are emulated on the CPU."""
    emulate_macos: int | None = None
    environment: str | None = None
    """Environment of other releases, built by `bisect`, in which it runs; the current one if None."""
    dataset: str = "synthetic"
    eval_dataset: str | None = None
    max_length: int = Field(default=512, ge=2)
    """Longest sequence, in tokens."""
    batch_size: int = Field(default=4, ge=1)
    pad_to_multiple_of: int | None = Field(default=None, ge=1)
    max_steps: int = Field(default=3, ge=0)
    """Training steps before the evaluation."""
    eval_max_batches: int = Field(default=4, ge=1)
    seed: int = Field(default=0, ge=0)
    warmup: int = Field(default=2, ge=0)
    """Untimed steps at the start of a timing round."""
    repeats: int = Field(default=5, ge=1)
    """Timed steps of each kind in a timing round."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads that torch gets; None leaves the number to torch."""
    files: str | None = None
    """Fingerprint of the local files that model and data are read from; None if there are none."""

    @property
    def title(self) -> str:
        """Its name, made from the fields that people compare."""
        return f"{self.attn_implementation} + {self.trainer}, {self.padding_side}, {self.model}, {self.dtype}"

    @property
    def emulation(self) -> Emulation | None:
        """The emulation that it runs under, if any."""
        if self.emulate is None:
            return None
        from mpsdiag.emulation.selection import Emulation

        return Emulation(self.emulate, self.emulate_macos or DEFAULT_MACOS)

    def key(self, versions: dict[str, str]) -> str:
        """Sixteen hex digits that name this scenario with these versions of torch and transformers, by name."""
        # Keys are older than these fields.
        beside = {"environment"} if self.environment is None else set()
        beside |= {"task"} if self.task == "auto" else set()
        text = json.dumps({"cell": self.model_dump(exclude=beside), "versions": versions}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class FirstNonfinite(BaseModel):
    """Where the first non-finite value was seen; `layer` counts decoder layers from 0 and is None outside them."""

    model_config = ConfigDict(extra="forbid")

    batch: int
    layer: int | None
    module: str
    operation: str
    rows: int


class Measured(BaseModel):
    """The results of a scenario. Losses are means over tokens, in nats; rows are query rows; memory is in bytes.

    A field is None (or empty, or 0) where it was not measured.
    """

    model_config = ConfigDict(extra="forbid")

    train_losses: list[Number] = Field(default_factory=list)
    grad_norms: list[Number] = Field(default_factory=list)
    eval_losses: list[Number] = Field(default_factory=list)
    eval_loss: Number | None = None
    stock_eval_loss: Number | None = None
    """The value this transformers would have printed with its default `logging_nan_inf_filter`."""
    reference_eval_loss: Number | None = None
    """eval_loss of stock SDPA on the CPU in the same dtype, with the same weights."""
    reference_first_train_loss: Number | None = None
    """Loss of the first training batch before any step, on the CPU."""
    nonfinite_batches: int = 0
    dead_rows: int = 0
    """(sequence, query) rows that may attend to nothing and reach F.sdpa, each counted once for each forward."""
    sdpa_calls: int = 0
    noncontiguous_dead_calls: int = 0
    exposure: Exposure | None = None
    cause: Blame | None = None
    first_nonfinite: FirstNonfinite | None = None
    nonfinite_rows: list[list[int]] = Field(default_factory=list)
    """Per layer, how many sequences are non-finite at each position (layer x position), first bad batch."""
    max_abs_logit_diff: Number | None = None
    """Against the float64 CPU reference, on real (not padded) positions."""
    bound: Number | None = None
    """Twice the error that eager attention in the same dtype makes against that reference."""
    loss_moved_by: Number | None = None
    """eval_loss minus reference_eval_loss."""
    exact: bool | None = None
    """Whether logits agree with the float64 reference within `bound` at every position, even in fully masked rows."""
    real_tokens: int = 0
    pad_tokens: int = 0
    missing_weights: str | None = None
    """A sentence about weights that the checkpoint lacks, or that are bad but not read by the model; if any."""
    invariance: Invariance | None = None
    """Whether padding changes the numbers, before any training step."""
    peak_process_memory: int | None = None
    peak_device_memory: int | None = None

    @property
    def invariance_diff(self) -> float | None:
        """Largest difference of padded batches from each sequence alone that counts; None if not compared."""
        results = [] if self.invariance is None else self.invariance.arrangements
        return max((r.max_abs_diff for r in results if r.counts and r.name != "generate"), default=None)

    @property
    def by_position(self) -> dict[str, list[float]]:
        """By arrangement, the largest difference at each position of a sequence; empty if not compared."""
        return {} if self.invariance is None else self.invariance.by_position

    @property
    def status(self) -> Literal["ok", "nan", "wrong"]:
        """Whether the numbers are correct."""
        return self._judged()[0]

    @property
    def reason(self) -> str:
        """Why, in one sentence."""
        return self._judged()[1]

    def _judged(self) -> tuple[Literal["ok", "nan", "wrong"], str]:
        bad_steps = [step for step, loss in enumerate(self.train_losses, 1) if not math.isfinite(loss)]
        if bad_steps:
            return "nan", f"the training loss is not finite from step {bad_steps[0]}"
        if self.nonfinite_batches:
            of_all = f"{self.nonfinite_batches} of {len(self.eval_losses)} evaluation batches"
            return "nan", f"{of_all} have a non-finite loss"
        off, bound = self.max_abs_logit_diff, self.bound
        if off is not None and not math.isfinite(off):
            return "nan", "logits at real positions are not finite"
        if off is not None and bound is not None and off > bound:
            return "wrong", (
                f"logits at real positions differ from the float64 reference by {off:.3g}; the bound is {bound:.3g}"
            )
        return "ok", "all losses are finite and all logits within the bound"


def finite(value: float | None) -> bool:
    """Whether a number was measured and is finite."""
    return value is not None and math.isfinite(value)
