"""`mpsdiag trace`: where the first NaN comes from, and why."""

from pathlib import Path
from typing import Annotated

import typer

from mpsdiag.cli import options, output
from mpsdiag.cli.options import MODES, count, note_without_effect, what
from mpsdiag.words import BUILTIN_DATASET, DEFAULT_MODEL

# What only a data set is read with.
DATA = ("dataset", "padding_side", "max_length", "batch_size", "eval_max_batches", "pad_to_multiple_of")
TRAINING = ("max_steps", "learning_rate")


def trace(
    context: typer.Context,
    folder: Annotated[Path | None, typer.Argument(metavar="FOLDER", help="A case saved by BadBatchRecorder.")] = None,
    model: Annotated[str | None, what("--model", f"{options.MODEL} [{DEFAULT_MODEL}]")] = None,
    task: options.Task = "auto",
    dataset: Annotated[str | None, what("--dataset", f"{options.DATASET} [synthetic]")] = None,
    batch: Annotated[Path | None, what("--batch", "A batch saved as .safetensors.", metavar="FILE")] = None,
    train: Annotated[bool, what("--train", "Trace training steps: forward, backward, optimizer.")] = False,
    max_steps: Annotated[int | None, count("--max-steps", "Training steps. [10]")] = None,
    learning_rate: Annotated[
        float | None, what("--learning-rate", "Learning rate of the training steps. [5e-5]", min=0.0, max=1e30)
    ] = None,
    padding_side: options.PaddingSide = "left",
    attn_implementation: Annotated[
        str | None,
        what(
            "--attn-implementation",
            "Attention mode, such as sdpa, eager or safe_sdpa, or hub kernel (ORG/REPO). [sdpa]",
            autocompletion=MODES,
        ),
    ] = None,
    device: Annotated[str | None, options.DEVICE] = None,
    dtype: Annotated[
        str | None, what("--dtype", "float32, bfloat16 or float16. [float32; a saved case: its own]", metavar="DTYPE")
    ] = None,
    max_length: options.MaxLength = None,
    batch_size: Annotated[int, count("--batch-size", "Sequences in a batch.")] = 4,
    eval_max_batches: Annotated[int, count("--eval-max-batches", "Batches to look at.")] = 4,
    pad_to_multiple_of: Annotated[int | None, count("--pad-to-multiple-of", "As in transformers' collators.")] = None,
    checkpoints: Annotated[
        list[Path] | None, what("--checkpoints", "Find the checkpoint since which weights are bad.", metavar="FOLDER")
    ] = None,
    compare: Annotated[
        bool | None,
        what("--compare/--no-compare", "Compare finite results with float64 on the CPU. [not on a plain CPU]"),
    ] = None,
    repro: Annotated[
        Path | None,
        options.printed("--repro", "Write a script that reproduces it with torch alone.", metavar="FILE.py"),
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
    options.one_format(json=json, markdown=markdown)
    if emulate is None:
        note_without_effect(context, ["emulate_macos"], "without --emulate")
    if folder is not None or batch is not None:
        note_without_effect(context, DATA, "with a recorded folder or a saved batch")
    from mpsdiag.environment import require_working_pair

    require_working_pair()
    from mpsdiag.progress import bar
    from mpsdiag.tracing.cases.traced_case import TraceRequest
    from mpsdiag.tracing.run import investigate

    request = TraceRequest(
        folder=folder,
        batch_file=batch,
        model=model,
        task=task,
        dataset=dataset or BUILTIN_DATASET,
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
    with bar() as progress:
        report = investigate(request, repro=repro, progress=progress)
    if report.mode == "evaluation":  # a recorded folder may come from training
        note_without_effect(context, TRAINING, "without --train")
    from mpsdiag.reporting.trace import document

    output.show_answer(report.to_dict(), document(report), as_json=json, markdown=markdown, page=html)
    raise typer.Exit(report.exit_code)
