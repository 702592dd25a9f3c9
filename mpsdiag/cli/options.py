"""The options that several commands share, each with one name, one meaning and one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpsdiag.cli.help_page import MODELS, OUTPUT, SIDES, WHAT, WHERE
from mpsdiag.words import LARGEST_SEED, TASKS

Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="auto, cpu, mps, cuda[:N] or xpu; auto: mps, cuda, xpu, cpu.",
        rich_help_panel=WHERE,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype", metavar="DTYPE", help="float32, bfloat16 or float16 (and float64 on the CPU).", rich_help_panel=WHAT
    ),
]
PaddingSide = Annotated[
    str, typer.Option("--padding-side", help="left or right.", rich_help_panel=WHAT, autocompletion=SIDES)
]
Task = Annotated[
    str,
    typer.Option(
        "--task",
        metavar="TASK",
        help=f"auto reads it from the model's config; or {', '.join(TASKS)}.",
        rich_help_panel=WHAT,
    ),
]
Seed = Annotated[
    int,
    typer.Option("--seed", min=0, max=LARGEST_SEED, help="Seed of weights, data and dropout.", rich_help_panel=WHAT),
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout, nothing else.", rich_help_panel=OUTPUT)
]
Markdown = Annotated[bool, typer.Option("--markdown", help="The block to paste into an issue.", rich_help_panel=OUTPUT)]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html", metavar="FILE", help="Also write the answer as one self-contained page.", rich_help_panel=OUTPUT
    ),
]
Emulate = Annotated[
    str | None,
    typer.Option(
        "--emulate",
        metavar="RELEASE",
        help="CPU model of the MPS kernels of that torch release, 2.0 to 2.15. Emulated, not measured.",
        rich_help_panel=WHERE,
    ),
]
EmulateMacos = Annotated[
    int,
    typer.Option(
        "--emulate-macos", metavar="N", help="macOS version to emulate: 13, 14, 15 or 26.", rich_help_panel=WHERE
    ),
]
Model = Annotated[
    str,
    typer.Option("--model", help="Built-in, local folder or hub name.", rich_help_panel=WHAT, autocompletion=MODELS),
]
Dataset = Annotated[
    str, typer.Option("--dataset", help="synthetic, a local file or folder, or a hub name.", rich_help_panel=WHAT)
]
