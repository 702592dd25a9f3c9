"""`mpsdiag.trace`, and `mpsdiag trace` without its command line: load a case, trace it, report it. Schema 1."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from mpsdiag import device as devices
from mpsdiag import environment
from mpsdiag.environment import Environment
from mpsdiag.errors import BadInput
from mpsdiag.findings import Answer, Emulated
from mpsdiag.inputs.models import missing_note, model_notes
from mpsdiag.inputs.modules import in_mode
from mpsdiag.quiet import errors_only, no_bars
from mpsdiag.tracing.cases.traced_case import TracedCase, TraceRequest, bad_since, find_checkpoints, load_case
from mpsdiag.tracing.causes.given_values import unread_weights
from mpsdiag.tracing.origin import Origin
from mpsdiag.tracing.passes.forward import ForwardTrace, TracedRun, joined, trace_batches
from mpsdiag.tracing.passes.model_inputs import prepare_batch
from mpsdiag.tracing.passes.training import LEARNING_RATE, trace_training
from mpsdiag.tracing.repro.repro_script import check_target, write_repro
from mpsdiag.words import EXIT_FOUND, EXIT_OK

SCHEMA = 1
TRAINING_STEPS = 10


class TraceReport(Answer, BaseModel):
    """The findings of a trace. Losses are means over tokens, in nats; `origin` None: everything is finite.

    `losses` and `grad_norms` are those of every batch or step that ran; `bad_batches` are the numbers of the evaluation
    batches with a finding; `stock_eval_loss` is what this transformers prints by default; `repro_note` is the result
    of running the script at `repro`, or why there is none; `notes` are other facts a reader must know, such as that
    weights are random.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_: int = Field(default=SCHEMA, alias="schema")
    mode: Literal["evaluation", "training"]
    device: str
    emulated: Emulated | None
    environment: Environment
    case: dict[str, Any]
    losses: list[float] = Field(default_factory=list)
    grad_norms: list[float] = Field(default_factory=list)
    bad_batches: list[int] = Field(default_factory=list)
    eval_loss: float | None = None
    stock_eval_loss: float | None = None
    origin: Origin | None = None
    repro: str | None = None
    repro_note: str | None = None
    notes: list[str] = Field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 everything finite, 1 something was found."""
        return EXIT_OK if self.origin is None else EXIT_FOUND

    def to_dict(self) -> dict[str, Any]:
        """The JSON document, with `schema` first."""
        return self.model_dump(by_alias=True)


def investigate(
    request: TraceRequest, *, repro: Path | None = None, progress: Callable[[str], None] = lambda _: None
) -> TraceReport:
    """Trace a case."""
    if repro is not None:
        check_target(repro)
    checkpoints = find_checkpoints(request.checkpoints)
    if checkpoints and request.model is None and request.folder is None:
        request = replace(request, model=str(checkpoints[-1]))
    # The libraries would warn of the very faults that are being traced.
    quiet = errors_only("mpsdiag"), errors_only("transformers")
    with quiet[0], quiet[1], no_bars(progress), load_case(request, progress) as case:
        try:
            found = _traced(request, case, progress)
        except StopIteration as problem:
            if "get_target_dtype" not in {frame.name for frame in traceback.extract_tb(problem.__traceback__)}:
                raise
            raise BadInput(
                f"{type(case.model).__name__} cannot run this attention in float32: transformers takes the dtype for "
                "a flash kernel from a Linear layer, and this model's attention has none. Add --dtype bfloat16."
            ) from problem
        report = _report(case, found)
    if checkpoints and report.origin is not None:
        report.origin = _with_history(report.origin, checkpoints)
    if repro is not None:
        progress("reducing it to a script")
        grad = case.train or case.grad
        try:
            written, report.repro_note = write_repro(
                repro, report.origin, found.call, report.environment, grad=grad, emulation=case.emulation
            )
        except BadInput as problem:  # a full disk; the answer is still given
            written, report.repro_note = False, str(problem)
        report.repro = str(repro) if written else None
    return report


def _traced(request: TraceRequest, case: TracedCase, progress: Callable[[str], None]) -> TracedRun:
    if not case.train:
        compare, grad = request.compare, case.grad
        return trace_batches(case.model, case.batches, compare=compare, grad=grad, progress=progress)
    rate = LEARNING_RATE if case.learning_rate is None else case.learning_rate
    steps = request.steps or (1 if request.folder is not None else TRAINING_STEPS)
    case.case_info |= {"learning_rate": rate, "steps": steps}
    return trace_training(case.model, case.batches, rate, steps=steps, progress=progress)


def _report(case: TracedCase, found: TracedRun) -> TraceReport:
    emulation, missing = case.emulation, missing_note(case.model)
    seen = [found.origin, *(found.origin.also if found.origin else ()), unread_weights(case.model)]
    return TraceReport(
        mode="training" if case.train else "evaluation",
        device=case.device,
        emulated=None if emulation is None else Emulated(release=emulation.release, macos=emulation.macos),
        environment=environment.gather(devices.accelerators(probe=False)),
        case=case.case_info,
        losses=found.losses if case.train or found.eval_loss is not None else [],
        grad_norms=found.grad_norms,
        bad_batches=found.bad,
        eval_loss=found.eval_loss,
        stock_eval_loss=found.stock_eval_loss,
        origin=joined(origin for origin in seen if origin),
        notes=[*([missing] if missing else []), *model_notes(case.model)],
    )


def _with_history(origin: Origin, checkpoints: list[Path]) -> Origin:
    """Add to every finding about weights since when they are bad."""
    if origin.cause == "bad_weights":
        names = [weight["name"] for weight in origin.evidence.get("weights", [])]
        history = bad_since(checkpoints, names)
        since = history["bad_since"]
        when = f"; since {since}" if since else ""
        if since and history["last_finite"]:
            when += f"; {history['last_finite']} is the last finite one"
        origin = origin.model_copy(
            update={"summary": origin.summary + when, "evidence": {**origin.evidence, "history": history}}
        )
    return origin.model_copy(update={"also": [_with_history(other, checkpoints) for other in origin.also]})


def trace(
    model: nn.Module, batch: Mapping[str, Any], *, train: bool = False, compare: bool | None = None
) -> Origin | None:
    """Find the first non-finite value of an evaluation of one batch or, if all are finite, where they go wrong.

    The model is run on its device, in evaluation mode without gradients (unless `train`), and left unchanged.

    Args:
        model: A transformers model, or any module that takes the batch as keyword arguments.
        batch: Such as `input_ids`, `attention_mask`, `labels`, each (sequences, positions); moved to the device.
        train: Trace a training step instead: forward with gradients, backward, AdamW. The weights are restored.
        compare: Compare finite results with float64 on the CPU. None: only if the model does not run on a plain CPU.

    Returns:
        Where, in which operation and why; None if everything is finite and, where compared, agrees with the CPU.

    Raises:
        BadInput: Not a model, or the batch does not fit it.
        CannotDecide: The forward itself fails.
    """
    _require_module(model)
    model = getattr(model, "_orig_mod", model)  # A graph of torch.compile hides its operations.
    prepared = prepare_batch(model, batch)
    if train:
        return trace_training(model, [prepared]).origin
    with in_mode(model, training=False, grad=False):
        return ForwardTrace(model, compare=compare).run(prepared).origin


def _require_module(model: object) -> None:
    if isinstance(model, nn.Module):
        return
    if model is None or isinstance(model, str | PathLike):
        name = "FOLDER" if model is None else str(model)
        raise BadInput(
            f"model is {model!r}, not a loaded model. Load it first (AutoModelForCausalLM.from_pretrained), or use the "
            f"command: mpsdiag trace --model {name}."
        )
    raise BadInput(f"model is a {type(model).__name__}, not a torch.nn.Module. Give the loaded model itself.")
