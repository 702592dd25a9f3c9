"""`mpsdiag bisect`: which release of torch or transformers broke it, or fixed it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpsdiag.cli import options, output
from mpsdiag.cli.options import other
from mpsdiag.errors import BadInput, one_of

if TYPE_CHECKING:
    from mpsdiag.bisect.bisection import PlannedSearch


def bisect(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COMMAND",
            help="Your check, after --. Exit code 0: good, 1 to 124: bad, 125: skip; others abort. `python` is that of "
            "the release. [mpsdiag's kernel and scenario]",
        ),
    ] = None,
    torch: Annotated[str | None, other("--torch", "Releases of torch, such as 2.5..2.10.", metavar="A..B")] = None,
    transformers: Annotated[
        str | None, other("--transformers", "Releases of transformers, such as 4.52.4..5.24.", metavar="A..B")
    ] = None,
    pin: Annotated[
        list[str] | None, other("--pin", "Pin another package. [the installed versions]", metavar="NAME==X")
    ] = None,
    find: Annotated[str | None, other("--find", "What to look for. [what the ends show]", metavar="break|fix")] = None,
    python: Annotated[str | None, other("--python", "Python of the environments. [this Python]", metavar="X.Y")] = None,
    device: options.Device = "auto",
    nightly: Annotated[bool, other("--nightly", "Include nightly builds and pre-releases.")] = False,
    bad_if: Annotated[
        str | None, other("--bad-if", "Which exit codes are bad: 'exit==1'.", metavar="CONDITION")
    ] = None,
    crash_is: Annotated[str, other("--crash-is", "How a crash or a time-out counts.", metavar="bad|skip")] = "skip",
    timeout: Annotated[float, other("--timeout", "Seconds that a try may take.", metavar="S")] = 600.0,
    out: Annotated[
        Path | None, other("--out", "Journal, logs, report. [reports/bisect-AXIS]", metavar="FOLDER")
    ] = None,
    fresh: Annotated[bool, other("--fresh", "Start over; the old journal is kept aside.")] = False,
    dry_run: Annotated[bool, other("--dry-run", "List the releases and the tries, and stop.")] = False,
    json: options.Json = False,
) -> None:
    """Find the torch or transformers release that broke or fixed it. The same command resumes.

    Exit code: 0 found, 1 the ends do not differ, 2 bad usage or input, 3 undecided, 130 interrupted.
    """
    from mpsdiag.benching.run.interrupt import Remembered
    from mpsdiag.bisect.bisection import Bisection
    from mpsdiag.bisect.trial import Rules
    from mpsdiag.progress import bar

    axis: Any = "torch" if torch is not None else "transformers"
    given = transformers if torch is None else torch
    if given is None or None not in {torch, transformers}:
        raise BadInput("Only one package can vary: give --torch A..B or --transformers A..B, and --pin the others.")
    wanted: Any = None if find is None else one_of("change", find, ("break", "fix"))
    crash: Any = one_of("outcome of a crash", crash_is, ("bad", "skip"))
    asked = Bisection(
        axis=axis,
        releases=given,
        out=out or Path(f"reports/bisect-{axis}"),
        pins=pin or (),
        find=wanted,
        python=python,
        device=device,
        nightly=nightly,
        fresh=fresh,
        rules=Rules(bad_if, crash, timeout),
        predicate=command or (),
    )
    with Remembered(), bar() as progress:
        plan = asked.prepare(progress)
        if plan.journal is not None:
            for warning in plan.journal.warnings:
                output.say(warning)
        found = None if dry_run else plan.run(progress, output.say)
    if found is None:
        _list(plan, as_json=json)
        raise typer.Exit(0)
    from mpsdiag.bisect.found import text_of

    if json:
        output.show_document(text_of(found, "json"))
    else:
        output.show(text_of(found, "terminal", width=output.width(), color=output.colored()))
    output.say(f"the journal is {asked.out / 'journal.jsonl'}; `mpsdiag report {asked.out}` renders it again")
    raise typer.Exit(found.exit_code)


def _list(plan: PlannedSearch, *, as_json: bool) -> None:
    """What a run would do."""
    document = plan.document()
    if as_json:
        from mpsdiag.serialization import dumps

        output.show_document(dumps(document, indent=2))
        return
    words = {name: one if isinstance(one, str | int) else " ".join(one) for name, one in document.items()}
    output.show("\n".join(f"{name}: {text}" for name, text in words.items()))
