"""`mpsdiag check`: is this machine affected, why, and which fix resolves it?"""

from typing import Annotated

import typer

from mpsdiag.cli import options, output
from mpsdiag.cli.options import PROBES, note_without_effect
from mpsdiag.words import BUILTIN_DATASET, DEFAULT_MODEL, EXIT_OK

Level = Annotated[
    int,
    options.what(
        "--level",
        "1: fully masked rows (about 2 s). 2: also the scenario through transformers (about 8 s). "
        "3: also the whole catalogue and the sweep (about 1 min on a CPU).",
    ),
]

# What only the scenario reads.
SCENARIO = ("model", "task", "dataset", "padding_side", "dtype", "max_length", "seed")


def check(
    context: typer.Context,
    probes: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROBE", help="Run only these probes, such as SDPA003.", autocompletion=PROBES),
    ] = None,
    device: options.Device = "auto",
    model: options.Model = DEFAULT_MODEL,
    task: options.Task = "auto",
    dataset: options.Dataset = BUILTIN_DATASET,
    padding_side: options.PaddingSide = "left",
    dtype: options.Dtype = "float32",
    max_length: options.MaxLength = None,
    seed: options.Seed = 0,
    level: Level = 2,
    emulate: options.Emulate = None,
    emulate_macos: options.EmulateMacos = 15,
    listing: Annotated[bool, options.printed("--list", "List the probes and stop.")] = False,
    json: options.Json = False,
    markdown: options.Markdown = False,
    html: options.Html = None,
) -> None:
    """Find out whether attention is wrong, why, and which fix helps.

    Exit code: 0 not affected, 1 affected, 2 bad usage or input, 3 undecided, 130 interrupted.
    """
    options.one_format(json=json, markdown=markdown)
    if listing:
        from mpsdiag.reporting.check import catalogue, catalogue_document

        output.show_answer(catalogue_document(), catalogue(), as_json=json, markdown=markdown)
        raise typer.Exit(EXIT_OK)
    if emulate is None:
        note_without_effect(context, ["emulate_macos"], "without --emulate")
    if probes:
        note_without_effect(context, [*SCENARIO, "level"], "when probes are named: only they run")
    elif level == 1:
        note_without_effect(context, SCENARIO, "at level 1: it runs no scenario")
    if level > 1 and not probes:
        from mpsdiag.environment import require_working_pair

        require_working_pair()
    from mpsdiag.checking.run import check as examine
    from mpsdiag.progress import bar

    with bar() as progress:
        diagnosis = examine(
            device,
            model=model,
            task=task,
            dataset=dataset,
            level=level,
            probes=probes or (),
            padding_side=padding_side,
            dtype=dtype,
            max_length=max_length,
            seed=seed,
            emulate=emulate,
            emulate_macos=emulate_macos,
            progress=progress,
        )
    from mpsdiag.reporting.check import document

    output.show_answer(diagnosis.to_dict(), document(diagnosis), as_json=json, markdown=markdown, page=html)
    raise typer.Exit(diagnosis.exit_code)
