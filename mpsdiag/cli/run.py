"""`mpsdiag run`: the user's own script, unedited, with a fix in place."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from mpsdiag.cli import options
from mpsdiag.cli.notes import note_without_effect

Target = Annotated[
    str,
    typer.Argument(metavar="SCRIPT", help="A Python file; with -m the name of a module.", show_default=False),
]
Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="[ARGS]...", help="All that follows is the script's own.")
]
AsModule = Annotated[bool, typer.Option("-m", help="SCRIPT is a module, as in python -m.")]
Fix = Annotated[
    str,
    typer.Option(
        "--fix",
        metavar="MODE",
        help="sdpa (none), eager, safe_sdpa, unmask_sdpa or min_mask_sdpa.",
    ),
]


def run(
    context: typer.Context,
    target: Target,
    arguments: Arguments = None,
    as_module: AsModule = False,
    fix: Fix = "safe_sdpa",
    emulate: options.Emulate = None,
    emulate_macos: options.EmulateMacos = 15,
) -> None:
    """Run your own script, unedited, with a fix in place, also in the Python processes it starts.

    The exit code is the script's own. Options go before SCRIPT: what follows it belongs to the script.
    """
    from mpsdiag.fixes.script import become, prepare

    launch = prepare(
        target,
        arguments or (),
        as_module=as_module,
        fix=fix,
        emulate=emulate,
        macos=emulate_macos,
        environ=os.environ,
    )
    if emulate is None:
        note_without_effect(context, ["emulate_macos"], "without --emulate")
    sys.stderr.write(f"mpsdiag: {launch.note}\n")
    become(launch)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(context_settings={"allow_interspersed_args": False})(run)
