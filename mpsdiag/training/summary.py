"""What a run leaves: `summary.json` (schema 1), and the log, which under emulation is marked and has no timings."""

import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from transformers import Trainer, TrainerCallback, TrainerState

from mpsdiag.environment import versions
from mpsdiag.findings import FirstLabel
from mpsdiag.serialization import dumps, write_atomically

SCHEMA: Final = 1
FILE_NAME: Final = "summary.json"
_PACKAGES: Final = ("mpsdiag", "torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors")
_TIMINGS: Final = ("_runtime", "_per_second", "_time")


def losses_of(history: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Training and evaluation losses of a Trainer's log, by step."""
    train = [
        {"step": row["step"], "loss": row["loss"], "grad_norm": row.get("grad_norm")}
        for row in history
        if "loss" in row
    ]
    evaluation = [
        {"step": row["step"], **{name: value for name, value in row.items() if name.endswith("_loss")}}
        for row in history
        if any(name.startswith("eval_") and name.endswith("_loss") for name in row)
    ]
    return {"train": train, "evaluation": evaluation}


def write_summary(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write the summary into a folder, completely or not at all, and return its path. NaN is written as "nan"."""
    path = folder / FILE_NAME
    known = {"python": platform.python_version(), **versions(_PACKAGES)}
    write_atomically(path, dumps({"schema": SCHEMA, "versions": known, **summary}, indent=2) + "\n")
    return path


def lines_for_people(summary: Mapping[str, Any]) -> list[str]:
    """The results of a run as a few `name = value` lines."""
    mark = " (emulated)" if summary.get("emulated") else ""
    losses = {name: summary.get(name) for name in ("train_loss", "eval_loss")}
    found = [f"{name} = {value:.4f}{mark}" for name, value in losses.items() if value is not None]
    loss = losses["eval_loss"]
    if loss is not None and math.isfinite(loss):
        found.append(f"eval_perplexity = {math.exp(min(loss, 700.0)):.4f}{mark}")
    if summary["first_label"] is not None:
        said = FirstLabel.model_validate(summary["first_label"]).sentence
        found.append(f"first_label = {said} (the first batches of the evaluation){mark}")
    bad = summary["nonfinite"]
    counts = []
    if bad["train_batches_seen"]:
        counts.append(f"{bad['train_batches']} in training")
    if bad["eval_batches_seen"]:
        on_cpu = f" ({bad['eval_on_cpu']} evaluated on the CPU instead)" if bad["eval_on_cpu"] else ""
        counts.append(f"{bad['eval_batches']} in evaluation{on_cpu}")
    if counts:  # A part that did not run is not mentioned.
        found.append(f"nonfinite_batches = {', '.join(counts)}")
    return found


def mark_as_emulated(trainer: Trainer) -> None:
    """Mark the Trainer's log as emulated and remove its timings, for everything that prints or saves it.

    Callbacks that are added afterwards see the log as it is.
    """
    for callback in trainer.callback_handler.callbacks:
        shown: Any = callback
        shown.on_log = _marking(callback.on_log)
    trainer.add_callback(_MarkHistory())


def emulated_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the log, marked and without timings."""
    kept = {name: value for name, value in row.items() if not name.endswith(_TIMINGS)}
    return {"emulated": True, **kept}


def _marking(on_log: Any) -> Any:
    def marked(*given: Any, logs: dict[str, Any] | None = None, **more: Any) -> Any:
        return on_log(*given, logs=None if logs is None else emulated_row(logs), **more)

    return marked


class _MarkHistory(TrainerCallback):
    """The last callback: the others have already read what they need from the row."""

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        del args, control, kwargs
        if state.log_history:
            state.log_history[-1] = emulated_row(state.log_history[-1])
