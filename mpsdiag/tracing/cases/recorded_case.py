"""Saved batches: a safetensors file, or a folder with the batch, the weights at that time and how it was run.

Pickles are refused, because loading one can run code.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from mpsdiag import environment
from mpsdiag.emulation import mode as emulation
from mpsdiag.emulation.selection import Emulation
from mpsdiag.errors import BadInput, file_errors, first_line
from mpsdiag.serialization import dumps, read_file, readable

SCHEMA = 1
ABOUT, BATCH, MODEL = "case.json", "batch.safetensors", "model"
# Files of torch.save and pickle.dump begin with one of these: a zip, or a pickle of protocol 2 to 5.
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class About(BaseModel):
    """How the recorded batch was run. `autocast` is a dtype name; `step` counts optimizer steps."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_: int = Field(default=SCHEMA, alias="schema")
    phase: Literal["training", "evaluation"]
    step: int
    grad: bool
    device: str
    dtype: str
    attention: str | None = None
    autocast: str | None = None
    emulation: Emulation | None = None
    learning_rate: float | None = None
    loss: float | str | None = None
    losses: list[float | str] = Field(default_factory=list)
    noticed: str = "loss"
    arguments: dict[str, int | float | bool | None] = Field(default_factory=dict)
    """Arguments of the forward that are not tensors."""
    versions: dict[str, str | None] = Field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, *, training: bool, **known: Any) -> About:
        """How a model is being run at this moment; `known` gives further fields."""
        weight = next(model.parameters(), torch.zeros(()))
        return cls(
            phase="training" if training else "evaluation",
            device=str(weight.device),
            dtype=str(weight.dtype).removeprefix("torch."),
            attention=getattr(getattr(model, "config", None), "_attn_implementation", None),
            emulation=emulation.active(),
            versions=dict(environment.versions()),
            **known,
        )


def check_free(folder: Path) -> None:
    """Refuse a folder that is in use."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} already exists. Choose another folder for the bad batch, or remove it.")


def write_case(folder: Path, model: nn.Module | None, batch: Mapping[str, Any], about: About) -> None:
    """Write a case completely or not at all: first beside the folder, then renamed."""
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in batch.items() if isinstance(value, int | float | bool)}
    document = about.model_copy(update={"arguments": plain}).model_dump(by_alias=True)
    with file_errors(f"Cannot record the batch in {folder}", "Choose an empty folder you may write to."):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            save_batch(temporary / BATCH, tensors)
            if model is not None:
                saver: Any = model
                saver.save_pretrained(temporary / MODEL)
            (temporary / ABOUT).write_text(readable(dumps(document, indent=2)) + "\n", encoding="utf-8")
            if folder.is_dir():
                folder.rmdir()
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def read_case(folder: Path) -> tuple[About, dict[str, Any], Path | None]:
    """A recorded case: how it was run, the batch, and the folder of the weights (None if they were not saved)."""
    if not folder.exists():
        raise BadInput(f"There is no folder {folder}. Give one written by BadBatchRecorder, or --model and --dataset.")
    path = folder / ABOUT
    if not path.is_file():
        hint = " It looks like a model: give it as --model." if (folder / "config.json").is_file() else ""
        raise BadInput(f"{folder} is not a recorded case: it has no {ABOUT}.{hint}")
    try:
        document = json.loads(read_file(path))
        version = document.get("schema") if isinstance(document, dict) else None
        if isinstance(version, int) and version > SCHEMA:
            raise BadInput(
                f"{path} has schema {version}, which is newer than this mpsdiag knows ({SCHEMA}). Upgrade mpsdiag."
            )
        about = About.model_validate(document)
    except (ValueError, OSError, RecursionError) as problem:
        raise BadInput(f"{path} cannot be read: {_first(problem)}. Record the case again.") from problem
    batch: dict[str, Any] = {**load_batch(folder / BATCH), **about.arguments}
    weights = folder / MODEL
    return about, batch, weights if weights.is_dir() else None


def _first(problem: BaseException) -> str:
    if isinstance(problem, ValidationError):
        error = problem.errors()[0]
        return f"{'.'.join(map(str, error['loc']))}: {error['msg']}"
    return first_line(problem)


def load_batch(path: Path) -> dict[str, Tensor]:
    """Read a batch that `safetensors.torch.save_file` wrote: argument names to tensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.is_dir():
        raise BadInput(
            f"{path} is a folder, but --batch takes a .safetensors file. Give a recorded folder without --batch."
        )
    with file_errors(f"Cannot read the batch {path}"):
        head = read_file(path, 8)
    if head.startswith(_PICKLES):
        raise BadInput(
            f"{path} is a pickle, which is refused because loading it can run any code. Save "
            "the batch with safetensors.torch.save_file(batch, 'batch.safetensors')."
        )
    try:
        found = load_file(path)
    except (SafetensorError, OSError, ValueError) as problem:
        raise BadInput(
            f"{path} is not a complete safetensors file ({first_line(problem)}): cut short, or another format. Save "
            "the batch again with safetensors.torch.save_file."
        ) from problem
    if not found:
        raise BadInput(f"{path} holds no tensors. Save at least input_ids.")
    return found


def save_batch(path: Path, batch: Mapping[str, Tensor]) -> None:
    """Write the tensors of a batch, on the CPU and without shared memory."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in batch.items()}, path)
