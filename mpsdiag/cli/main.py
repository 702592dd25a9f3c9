"""Assemble the commands, run one, and turn its outcome into the exit code of the contract."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import typer
import typer.core

from mpsdiag.cli import bench, check, env, report, run, streams, trace, train
from mpsdiag.errors import MpsdiagError
from mpsdiag.words import EXIT_INTERRUPTED


class Commands(typer.core.TyperGroup):
    """The commands; Ctrl-C in any of them ends with one sentence and the code of the contract."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("mpsdiag: interrupted.", file=sys.stderr)  # noqa: T201 - the one sentence the user gets
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
for command in (check, trace, bench, report, train, run, env):
    command.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit the process with its code.

    Args:
        arguments: The words after the program's name; those of the process if None.
    """
    streams.guard()
    try:
        try:
            app(args=None if arguments is None else list(arguments), prog_name="mpsdiag")
        except SystemExit:
            sys.stdout.flush()  # while a failure can still be said
            raise
    except MpsdiagError as problem:
        with contextlib.suppress(streams.CannotPrint):
            sys.stdout.flush()
        print(f"mpsdiag: {problem}", file=sys.stderr)  # noqa: T201 - the one sentence the user gets
        sys.exit(problem.exit_code)
