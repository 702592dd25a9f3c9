"""The options that several commands share, each with one name, one meaning and one help text."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from mpsdiag.cli.help_page import MODELS, OUTPUT, SIDES, WHAT, WHERE
from mpsdiag.errors import BadInput
from mpsdiag.words import LARGEST_SEED, MOST, TASKS


def option(panel: str | None, name: str, words: str, **more: Any) -> Any:
    """An option that stands in a group of `--help`; `more` goes to typer."""
    return typer.Option(name, help=words, rich_help_panel=panel, **more)


what, where, printed, other = (partial(option, panel) for panel in (WHAT, WHERE, OUTPUT, None))
count = partial(what, min=1, max=MOST)

DEVICE = where("--device", "auto, cpu, mps, cuda[:N] or xpu; auto: mps, cuda, xpu, cpu.", metavar="DEVICE")
EMULATE = "CPU model of the MPS kernels of that torch release, 2.0 to 2.15. Emulated, not measured."
MACOS = "macOS version to emulate: 13, 14, 15 or 26."
MODEL = "Built-in, local folder or hub name."
DATASET = "synthetic, a local file or folder, or a hub name."

Device = Annotated[str, DEVICE]
Dtype = Annotated[str, what("--dtype", "float32, bfloat16 or float16 (and float64 on the CPU).", metavar="DTYPE")]
PaddingSide = Annotated[str, what("--padding-side", "left or right.", autocompletion=SIDES)]
Task = Annotated[str, what("--task", f"auto reads it from the model's config; or {', '.join(TASKS)}.", metavar="TASK")]
MaxLength = Annotated[
    int | None, what("--max-length", "Longest sequence, in tokens. [128; own data: 512]", min=2, max=MOST)
]
Seed = Annotated[int, what("--seed", "Seed of weights, data and dropout.", min=0, max=LARGEST_SEED)]
Json = Annotated[bool, printed("--json", "One JSON document on stdout, nothing else.")]
Markdown = Annotated[bool, printed("--markdown", "The block to paste into an issue.")]
Html = Annotated[Path | None, printed("--html", "Also write the answer as one self-contained page.", metavar="FILE")]
Emulate = Annotated[str | None, where("--emulate", EMULATE, metavar="RELEASE")]
EmulateMacos = Annotated[int, where("--emulate-macos", MACOS, metavar="N")]
Model = Annotated[str, what("--model", MODEL, autocompletion=MODELS)]
Dataset = Annotated[str, what("--dataset", DATASET)]


def one_format(*, json: bool, markdown: bool) -> None:
    """Refuse two formats on one stdout."""
    if json and markdown:
        raise BadInput("--json and --markdown exclude each other: choose one.")
