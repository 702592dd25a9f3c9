"""A recorded case: a small folder with the batch, the weights of that moment, and how it was run."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from mpsdiag.emulation import Emulation
from mpsdiag.errors import BadInput, first_line
from mpsdiag.serialization import dumps, readable
from mpsdiag.tracing.cases.saved_batch import load_batch, save_batch

SCHEMA = 1
ABOUT, BATCH, MODEL = "case.json", "batch.safetensors", "model"


class RecordedEmulation(BaseModel):
    """The emulation that was in effect."""

    model_config = ConfigDict(extra="forbid")

    release: str
    macos: int
    defects: list[str] | None = None

    @classmethod
    def of(cls, emulation: Emulation) -> RecordedEmulation:
        """To be written."""
        defects = None if emulation.defects is None else list(emulation.defects)
        return cls(release=emulation.release, macos=emulation.macos, defects=defects)

    def restored(self) -> Emulation:
        """To be put into effect again.

        Raises:
            BadInput: There is no such release, macOS version or defect.
        """
        return Emulation(self.release, self.macos, None if self.defects is None else tuple(self.defects))


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
    emulation: RecordedEmulation | None = None
    learning_rate: float | None = None
    loss: float | str | None = None
    losses: list[float | str] = Field(default_factory=list)
    noticed: str = "loss"
    arguments: dict[str, int | float | bool | None] = Field(default_factory=dict)
    """Arguments of the forward that are no tensors."""
    versions: dict[str, str | None] = Field(default_factory=dict)


def write_case(folder: Path, model: nn.Module | None, batch: Mapping[str, Any], about: About) -> None:
    """Write a case whole or not at all: beside the folder first, then renamed.

    Args:
        folder: Must not exist, or be empty.
        model: With `save_pretrained`; None to leave the weights out.
        batch: The keyword arguments of the forward.
        about: How it was run; `arguments` is filled in here.

    Raises:
        BadInput: The folder cannot be written.
    """
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in batch.items() if isinstance(value, int | float | bool)}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            save_batch(temporary / BATCH, tensors)
            if model is not None:
                saver: Any = model
                saver.save_pretrained(temporary / MODEL)
            document = about.model_copy(update={"arguments": plain}).model_dump(by_alias=True)
            (temporary / ABOUT).write_text(readable(dumps(document, indent=2)) + "\n", encoding="utf-8")
            if folder.is_dir():
                folder.rmdir()
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as problem:
        raise BadInput(
            f"Cannot record the batch in {folder}: {problem.strerror}. Choose an empty folder you may write to."
        ) from problem


def read_case(folder: Path) -> tuple[About, dict[str, Any], Path | None]:
    """Read a recorded case.

    Returns:
        How it was run, the batch, and the folder of the weights (None if they were left out).

    Raises:
        BadInput: It is no such folder, is incomplete, or was written by a newer version.
    """
    if not folder.exists():
        raise BadInput(
            f"There is no folder {folder}. Give one that the recording callback wrote, or --model and --dataset."
        )
    path = folder / ABOUT
    if not path.is_file():
        hint = " It looks like a model: give it as --model." if (folder / "config.json").is_file() else ""
        raise BadInput(f"{folder} is no recorded case: it has no {ABOUT}.{hint}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        version = document.get("schema") if isinstance(document, dict) else None
        if isinstance(version, int) and version > SCHEMA:
            raise BadInput(
                f"{path} has schema {version}, newer than this mpsdiag knows ({SCHEMA}). Upgrade mpsdiag."
            )
        about = About.model_validate(document)
    except (ValueError, OSError, ValidationError) as problem:
        raise BadInput(f"{path} cannot be read: {_first(problem)}. Record the case again.") from problem
    batch: dict[str, Any] = {**load_batch(folder / BATCH), **about.arguments}
    weights = folder / MODEL
    return about, batch, weights if weights.is_dir() else None


def _first(problem: BaseException) -> str:
    if isinstance(problem, ValidationError):
        error = problem.errors()[0]
        return f"{'.'.join(map(str, error['loc']))}: {error['msg']}"
    return first_line(problem)
