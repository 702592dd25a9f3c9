"""`mpsdiag run`: the user's own script, unedited, with a fix in place."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from mpsdiag.cli import options, output
from mpsdiag.cli.notes import note_without_effect
from mpsdiag.words import EXIT_FOUND

if TYPE_CHECKING:
    from mpsdiag.fixes.script import Launch

Target = Annotated[
    str,
    typer.Argument(metavar="SCRIPT", help="A Python file; with -m the name of a module.", show_default=False),
]
Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="[ARGS]...", help="All that follows is the script's own.")
]
AsModule = Annotated[bool, typer.Option("-m", help="SCRIPT is a module, as in python -m.")]
Fix = Annotated[
    str | None,
    typer.Option(
        "--fix",
        metavar="MODE",
        help="sdpa (none), eager, safe_sdpa, unmask_sdpa or min_mask_sdpa. [safe_sdpa; with --trace: sdpa]",
    ),
]
Trace = Annotated[
    bool,
    typer.Option("--trace", help="Watch all models in it; stop at the first non-finite value and say why."),
]
KeepGoing = Annotated[
    bool, typer.Option("--keep-going", help="With --trace: finish the script, then tell all that was found.")
]
Record = Annotated[
    Path | None,
    typer.Option(
        "--record",
        metavar="FOLDER",
        help="With --trace: keep the bad batch; mpsdiag trace FOLDER replays it.",
    ),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="With --trace: write what was seen as JSON.")
]


def run(
    context: typer.Context,
    target: Target,
    arguments: Arguments = None,
    as_module: AsModule = False,
    fix: Fix = None,
    trace: Trace = False,
    keep_going: KeepGoing = False,
    record: Record = None,
    json: JsonFile = None,
    html: options.Html = None,
    emulate: options.Emulate = None,
    emulate_macos: options.EmulateMacos = 15,
) -> None:
    """Run your own script, unedited, with a fix in place, also in the Python processes it starts.

    With --trace no fix is in place unless one is named, and everything that the script runs is watched.

    The exit code is the script's own; with --trace 1 if it was stopped. Options go before SCRIPT: what follows it
    belongs to the script.
    """
    from mpsdiag.fixes.script import become, prepare

    if not trace:
        note_without_effect(context, ["keep_going", "record", "json", "html"], "without --trace")
    if emulate is None:
        note_without_effect(context, ["emulate_macos"], "without --emulate")
    make = partial(
        prepare,
        target,
        arguments or (),
        as_module=as_module,
        fix=fix or ("sdpa" if trace else "safe_sdpa"),
        emulate=emulate,
        macos=emulate_macos,
        environ=os.environ,
    )
    if trace:
        _trace(make, [target, *(arguments or ())], record, keep_going=keep_going, json=json, html=html)
    launch = make()
    sys.stderr.write(f"mpsdiag: {launch.note}\n")
    become(launch)


def _trace(
    make: Callable[..., Launch],
    script: list[str],
    record: Path | None,
    *,
    keep_going: bool,
    json: Path | None,
    html: Path | None,
) -> NoReturn:
    """Run the script watched, and print what was seen."""
    from mpsdiag.device import accelerators
    from mpsdiag.environment import gather
    from mpsdiag.fixes.script import end_as, supervise
    from mpsdiag.reporting.formats import terminal
    from mpsdiag.reporting.formats.html import page
    from mpsdiag.reporting.script import script_document
    from mpsdiag.serialization import dumps, write_atomically
    from mpsdiag.tracing.cases.recorded_case import check_free
    from mpsdiag.tracing.process.session import ENTRY, OPTIONS, WatchOptions
    from mpsdiag.tracing.process.watched import ScriptReport, gathered

    if record is not None:
        check_free(record)
    with tempfile.TemporaryDirectory(prefix="mpsdiag-run-") as parts:
        wish = WatchOptions(
            parts=Path(parts), keep_going=keep_going, record=None if record is None else record.absolute()
        )
        launch = make(then=ENTRY, options={OPTIONS: wish.model_dump_json()})
        sys.stderr.write(f"mpsdiag: {launch.note}\n")
        sys.stderr.flush()
        code = supervise(launch)
        report = gathered(Path(parts), ScriptReport(script=script))
    report.script_exit = None if report.stopped else code
    if json is not None or html is not None:
        report.environment = gather(accelerators(probe=False))
    if json is not None:
        write_atomically(json, dumps(report.to_dict(), indent=2) + "\n")
    made = script_document(report)
    if html is not None:
        write_atomically(html, page(made))
    sys.stderr.write(terminal.write(made, width=output.width(), color=output.colored(sys.stderr)))
    sys.stderr.flush()
    end_as(EXIT_FOUND if report.stopped else code)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(context_settings={"allow_interspersed_args": False})(run)
