"""`summary.json`: what a training run was, and how it ended. Schema 1."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mpsdiag.environment import versions
from mpsdiag.serialization import dumps, write_atomically

SCHEMA: Final = 1
FILE_NAME: Final = "summary.json"
_PACKAGES: Final = ("mpsdiag", "torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors")


def library_versions() -> dict[str, str]:
    """Versions of Python, mpsdiag and the libraries that make the numbers."""
    return {"python": platform.python_version(), **versions(_PACKAGES)}


def losses_of(history: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Training and evaluation losses of a Trainer's log, by step.

    Args:
        history: `trainer.state.log_history`.
    """
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
    """Write the summary into a folder, whole or not at all, and return its path. NaN is written as "nan".

    Raises:
        BadInput: The folder cannot be written.
    """
    path = folder / FILE_NAME
    write_atomically(
        path, dumps({"schema": SCHEMA, "versions": library_versions(), **summary}, indent=2) + "\n"
    )
    return path


def lines_for_people(summary: Mapping[str, Any]) -> list[str]:
    """The end of a run in a few `name = value` lines."""
    found = []
    mark = " (emulated)" if summary.get("emulated") else ""
    for name in ("train_loss", "eval_loss"):
        value = summary.get(name)
        if value is not None:
            found.append(f"{name} = {value:.4f}{mark}")
    loss = summary.get("eval_loss")
    if loss is not None and math.isfinite(loss):
        found.append(f"eval_perplexity = {math.exp(min(loss, 700.0)):.4f}{mark}")
    bad = summary["nonfinite"]
    counts = []
    if bad["train_batches_seen"]:
        counts.append(f"{bad['train_batches']} in training")
    if bad["eval_batches_seen"]:
        on_cpu = f" ({bad['eval_on_cpu']} evaluated on the CPU instead)" if bad["eval_on_cpu"] else ""
        counts.append(f"{bad['eval_batches']} in evaluation{on_cpu}")
    if counts:  # Of what did not run nothing is said.
        found.append(f"nonfinite_batches = {', '.join(counts)}")
    return found
