"""`mpsdiag run`: the user's own script, unedited, with a fix in place."""

import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from mpsdiag.cli import options, output
from mpsdiag.cli.options import FIXES, note_without_effect, other
from mpsdiag.errors import BadInput
from mpsdiag.fixes.script import Launch
from mpsdiag.words import EXIT_FOUND

Target = Annotated[
    str, typer.Argument(metavar="SCRIPT", help="A Python file, or with -m the name of a module.", show_default=False)
]
Arguments = Annotated[list[str] | None, typer.Argument(metavar="ARGS", help="Everything after SCRIPT is passed to it.")]
AsModule = Annotated[bool, other("-m", "SCRIPT is a module, as in python -m.")]
Fix = Annotated[
    list[str] | None,
    other(
        "--fix",
        "sdpa (no fix), eager, safe_sdpa, unmask_sdpa, min_mask_sdpa or positions; repeat to combine. [safe_sdpa; "
        "with --trace or --check: sdpa]",
        metavar="FIX",
        show_default=False,
        autocompletion=FIXES,
    ),
]
Trace = Annotated[bool, other("--trace", "Watch all its models; stop at the first non-finite value and say why.")]
Check = Annotated[bool, other("--check", "Stop after the first evaluation, and check this script's model and data.")]
Steps = Annotated[int, other("--steps", "With --check: take a forward if no evaluation came in so many steps.", min=0)]
KeepGoing = Annotated[bool, other("--keep-going", "With --trace: finish the script, then report everything found.")]
Record = Annotated[
    Path | None,
    other("--record", "With --trace: save the bad batch; mpsdiag trace FOLDER replays it.", metavar="FOLDER"),
]
JsonFile = Annotated[Path | None, other("--json", "With --trace: write the findings as JSON.", metavar="FILE")]


def run(
    context: typer.Context,
    target: Target,
    arguments: Arguments = None,
    as_module: AsModule = False,
    fix: Fix = None,
    trace: Trace = False,
    check: Check = False,
    steps: Steps = 100,
    keep_going: KeepGoing = False,
    record: Record = None,
    json: JsonFile = None,
    html: options.Html = None,
    emulate: options.Emulate = None,
    emulate_macos: options.EmulateMacos = 15,
) -> None:
    """Run your own script, unedited, with a fix installed, or watched.

    The Python processes it starts are included. With --trace or --check no fix is installed unless --fix names one.

    The exit code is the script's own; with --trace 1 if it was stopped; with --check 1 affected, 0 not, 3 undecided.
    Options go before SCRIPT; everything after it belongs to the script.
    """
    from mpsdiag.fixes.script import become, prepare

    if trace and check:
        raise BadInput("--trace and --check cannot be combined: choose one.")
    watched = trace or check
    if not trace:
        note_without_effect(context, ["keep_going", "record"], "without --trace")
    if not watched:
        note_without_effect(context, ["json", "html"], "without --trace or --check")
    if not check:
        note_without_effect(context, ["steps"], "without --check")
    if emulate is None:
        note_without_effect(context, ["emulate_macos"], "without --emulate")
    make = partial(
        prepare,
        target,
        arguments or (),
        as_module=as_module,
        fixes=fix or (("sdpa",) if watched else ("safe_sdpa",)),
        emulate=emulate,
        macos=emulate_macos,
        environ=os.environ,
    )
    if watched:
        wish = {"keep_going": keep_going, "record": record, "check_steps": steps if check else None}
        _watch(make, [target, *(arguments or ())], wish, json=json, html=html)
    launch = make()
    sys.stderr.write(f"mpsdiag: {launch.note}\n")
    become(launch)


def _watch(
    make: Callable[..., Launch], script: list[str], wish: dict[str, Any], *, json: Path | None, html: Path | None
) -> NoReturn:
    """Run the script under the watch, and print what was seen."""
    from mpsdiag.device import accelerators
    from mpsdiag.environment import gather
    from mpsdiag.fixes.script import end_as, supervise
    from mpsdiag.reporting.formats import terminal
    from mpsdiag.reporting.formats.html import page
    from mpsdiag.reporting.trace import script_document
    from mpsdiag.serialization import dumps, write_atomically
    from mpsdiag.tracing.cases.recorded_case import check_free
    from mpsdiag.tracing.process.session import ENTRY, OPTIONS, WatchOptions
    from mpsdiag.tracing.process.watched import ScriptReport, check_code, gathered

    record = wish["record"]
    if record is not None:
        check_free(record)
        wish["record"] = record.absolute()
    with tempfile.TemporaryDirectory(prefix="mpsdiag-run-") as parts:
        wanted = WatchOptions(parts=Path(parts), **wish)
        launch = make(then=ENTRY, options={OPTIONS: wanted.model_dump_json()})
        sys.stderr.write(f"mpsdiag: {launch.note}\n")
        sys.stderr.flush()
        code = supervise(launch)
        report = gathered(Path(parts), ScriptReport(script=script))
    report.script_exit = None if report.stopped else code
    if json is not None or html is not None:
        report.environment = gather(accelerators(probe=False))
    made = script_document(report)
    sys.stderr.write(terminal.write(made, width=output.width(), color=output.colored(sys.stderr)))
    sys.stderr.flush()
    if json is not None:
        write_atomically(json, dumps(report.to_dict(), indent=2) + "\n")
    if html is not None:
        write_atomically(html, page(made))
    if wanted.check_steps is not None:
        end_as(check_code(report))
    end_as(EXIT_FOUND if report.stopped else code)
