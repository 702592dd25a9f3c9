"""Assemble the commands, run one, and turn its outcome into the exit code of the contract."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from mpsdiag.cli import bench, check, env, report, run, train
from mpsdiag.errors import MpsdiagError
from mpsdiag.words import EXIT_INTERRUPTED

app = typer.Typer(
    name="mpsdiag",
    help="Why attention gives NaN or quietly wrong numbers on padded batches, and which fix resolves it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (check, bench, report, train, run, env):
    command.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit the process with its code.

    Args:
        arguments: The words after the program's name; those of the process if None.
    """
    try:
        app(args=None if arguments is None else list(arguments), prog_name="mpsdiag")
    except MpsdiagError as problem:
        print(f"mpsdiag: {problem}", file=sys.stderr)  # noqa: T201 - the one sentence the user gets
        sys.exit(problem.exit_code)
    except KeyboardInterrupt:
        print("mpsdiag: interrupted.", file=sys.stderr)  # noqa: T201 - likewise
        sys.exit(EXIT_INTERRUPTED)
