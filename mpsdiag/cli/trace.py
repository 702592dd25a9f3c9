"""`mpsdiag trace`: where the first NaN comes from, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpsdiag.cli import options, output
from mpsdiag.cli.help_page import MODES, OUTPUT, WHAT, WHERE
from mpsdiag.cli.notes import note_without_effect
from mpsdiag.errors import BadInput
from mpsdiag.words import MOST

OptionalDevice = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="auto, cpu, mps, cuda[:N] or xpu; auto: mps, cuda, xpu, cpu.",
        rich_help_panel=WHERE,
    ),
]
OptionalDtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="float32, bfloat16 or float16. [float32; recorded: its own]",
        rich_help_panel=WHAT,
    ),
]


# What only a data set is read with.
DATA = ("dataset", "padding_side", "max_length", "batch_size", "eval_max_batches", "pad_to_multiple_of")
TRAINING = ("max_steps", "learning_rate")


def trace(
    context: typer.Context,
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="A case that BadBatchRecorder wrote.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Built-in, local folder or hub name. [tiny-gpt2]", rich_help_panel=WHAT),
    ] = None,
    task: options.Task = "auto",
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", help="synthetic, a local file or folder, or a hub name. [synthetic]", rich_help_panel=WHAT
        ),
    ] = None,
    batch: Annotated[
        Path | None,
        typer.Option("--batch", metavar="FILE", help="A batch saved as .safetensors.", rich_help_panel=WHAT),
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Trace training steps: forward, backward, optimizer.", rich_help_panel=WHAT)
    ] = False,
    max_steps: Annotated[
        int | None, typer.Option("--max-steps", min=1, max=MOST, help="Training steps. [10]", rich_help_panel=WHAT)
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", min=0.0, max=MOST, help="Of the training steps. [5e-5]", rich_help_panel=WHAT),
    ] = None,
    padding_side: options.PaddingSide = "left",
    attn_implementation: Annotated[
        str | None,
        typer.Option(
            "--attn-implementation",
            help="An attention mode, such as sdpa, eager, safe_sdpa, or a kernel of the hub (ORG/REPO). [sdpa]",
            rich_help_panel=WHAT,
            autocompletion=MODES,
        ),
    ] = None,
    device: OptionalDevice = None,
    dtype: OptionalDtype = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length",
            min=2,
            max=MOST,
            help="Longest sequence, in tokens. [128; own data: 512]",
            rich_help_panel=WHAT,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, max=MOST, help="Sequences in a batch.", rich_help_panel=WHAT)
    ] = 4,
    eval_max_batches: Annotated[
        int, typer.Option("--eval-max-batches", min=1, max=MOST, help="Batches to look at.", rich_help_panel=WHAT)
    ] = 4,
    pad_to_multiple_of: Annotated[
        int | None,
        typer.Option(
            "--pad-to-multiple-of", min=1, max=MOST, help="As for transformers' collators.", rich_help_panel=WHAT
        ),
    ] = None,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoints", metavar="FOLDER", help="Find out since which one weights are bad.", rich_help_panel=WHAT
        ),
    ] = None,
    compare: Annotated[
        bool | None,
        typer.Option(
            "--compare/--no-compare",
            help="Compare finite results with float64 on the CPU. [unless on the plain CPU]",
            rich_help_panel=WHAT,
        ),
    ] = None,
    repro: Annotated[
        Path | None,
        typer.Option(
            "--repro",
            metavar="FILE.py",
            help="Write a script that shows it alone, with torch only.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    seed: options.Seed = 0,
    emulate: options.Emulate = None,
    emulate_macos: options.EmulateMacos = 15,
    json: options.Json = False,
    markdown: options.Markdown = False,
    html: options.Html = None,
) -> None:
    """Find which operation gives the first non-finite value, and why.

    Exit code: 0 all finite, 1 something found, 2 bad usage or input, 3 undecided, 130 interrupted.
    """
    if json and markdown:
        raise BadInput("--json and --markdown exclude each other: choose one.")
    if emulate is None:
        note_without_effect(context, ["emulate_macos"], "without --emulate")
    if folder is not None or batch is not None:
        note_without_effect(context, DATA, "with a recorded folder or a saved batch")
    from mpsdiag.environment import require_working_pair

    require_working_pair()
    from mpsdiag.tracing.cases.traced_case import TraceRequest
    from mpsdiag.tracing.run import investigate

    request = TraceRequest(
        folder=folder,
        batch_file=batch,
        model=model,
        task=task,
        dataset=dataset,
        train=train,
        steps=max_steps,
        learning_rate=learning_rate,
        device=device,
        dtype=dtype,
        attention=attn_implementation,
        padding_side=padding_side,
        max_length=max_length,
        batch_size=batch_size,
        batches=eval_max_batches,
        pad_to_multiple_of=pad_to_multiple_of,
        seed=seed,
        compare=compare,
        emulate=emulate,
        emulate_macos=emulate_macos,
        checkpoints=tuple(checkpoints or ()),
    )
    with output.progress() as progress:
        report = investigate(request, repro=repro, progress=progress)
    if report.mode == "evaluation":  # a recorded folder may be of a training
        note_without_effect(context, TRAINING, "without --train")
    from mpsdiag.reporting.trace import document

    output.show_answer(report.to_dict(), document(report), as_json=json, markdown=markdown, page=html)
    raise typer.Exit(report.exit_code)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(trace)
