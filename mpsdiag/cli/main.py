"""Assemble the commands, run one, and turn its outcome into the exit code of the contract."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import typer
import typer.core

from mpsdiag.cli import bench, bisect, check, compare, env, report, run, streams, trace, train
from mpsdiag.cli.notes import with_new_names
from mpsdiag.errors import MpsdiagError, first_line
from mpsdiag.words import EXIT_INTERRUPTED, EXIT_UNDECIDED


class Commands(typer.core.TyperGroup):
    """The commands; Ctrl-C in any of them ends with one sentence and the code of the contract."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command, and give its options the names that they have today."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command, rest if command is None else with_new_names(command, rest)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _say("interrupted.")
            raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    cls=Commands,
    name="mpsdiag",
    help="Why attention gives NaN or quietly wrong numbers on padded batches, and which fix resolves it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (check, compare, trace, bench, bisect, report, train, run, env):
    command.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit the process with its code.

    An unexpected error is one sentence too, with its traceback in a file, and exit code 3: 1 would be a finding.

    Args:
        arguments: The words after the program's name; those of the process if None.
    """
    streams.guard()
    try:
        try:
            app(args=None if arguments is None else list(arguments), prog_name="mpsdiag")
        except SystemExit:
            sys.stdout.flush()  # while a failure can still be reported
            raise
    except MpsdiagError as problem:
        with contextlib.suppress(streams.CannotPrint):
            sys.stdout.flush()
        _say(str(problem))
        sys.exit(problem.exit_code)
    except Exception as problem:  # noqa: BLE001 - the last place to look at it
        _say(_unforeseen(problem))
        sys.exit(EXIT_UNDECIDED)


def _say(sentence: str) -> None:
    print(f"mpsdiag: {sentence}", file=sys.stderr)  # noqa: T201 - the one sentence the user gets


def _unforeseen(problem: Exception) -> str:
    """A sentence about a fault of ours, with the place where the traceback is kept."""
    import tempfile
    import traceback

    text = "".join(traceback.format_exception(problem))
    what = f"{type(problem).__name__}: {first_line(problem)}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="mpsdiag-", suffix=".txt", encoding="utf-8", errors="backslashreplace", delete=False
        ) as file:
            file.write(text)
    except OSError:
        return f"Unexpected {what}.\n{text}"
    return f"Unexpected {what}. Please report it with the traceback in {file.name} and the output of `mpsdiag env`."
